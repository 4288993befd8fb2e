"""Where engines and what belongs to them come from. Bundles and the shipped fake are both such sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fastserve.errors import BundleError
from fastserve.generation.orders import EngineStats, Order, Output
from fastserve.serving.generation.wire import EngineFacts, EngineOrder, Referred

if TYPE_CHECKING:
    from fastserve.text.writing_pipeline import WritingPipeline

BUNDLES = "fastserve.serving.generation.source:BundleWriters"


class ServedEngine(Protocol):
    """What a process needs of an engine; `generation.engine.Engine` is one."""

    def add(self, order: Order) -> None:
        """Take an order. UserError for what cannot be written, Overloaded where there is no room."""

    def cancel(self, id: str) -> None:
        """Nobody waits for this order any more; one that has ended is none."""

    def step(self) -> list[Output]:
        """One iteration: what it wrote."""

    @property
    def has_work(self) -> bool: ...

    def stats(self) -> EngineStats: ...


class LoadedEngine(Protocol):
    """An engine, with what it is checked against."""

    @property
    def engine(self) -> ServedEngine: ...

    @property
    def facts(self) -> EngineFacts: ...

    def refer(self, prompts: Sequence[Sequence[int]], tokens: int, texts: Sequence[str]) -> Referred:
        """What the plain loop writes after `prompts` (`tokens` each, greedily), and the nats a token of `texts`."""


@dataclass(frozen=True, slots=True)
class KeptText:
    """A text that a bundle keeps, and the nats for each token that evaluation found."""

    text: str
    nats: float


@dataclass(frozen=True, slots=True)
class WriterText:
    """The side of a model that needs no network: how prompts become ids, and what it is checked by."""

    pipeline: WritingPipeline
    kept: Sequence[KeptText] = ()


class WriterSource(Protocol):
    """Both sides of a model that writes: `text` is called in a worker, `load` in the engine's process."""

    def text(self, folder: Path) -> WriterText: ...

    def load(self, order: EngineOrder) -> LoadedEngine: ...


class BundleWriters:
    """Models of the task generation, from their folders."""

    def text(self, folder: Path) -> WriterText:
        from fastserve.bundle.bundle import Bundle

        bundle = Bundle.load(folder, verify=False)  # the engine's process verifies it
        kept = [KeptText(row.text, row.scores[0]) for row in bundle.manifest.parity if len(row.scores) == 1]
        return WriterText(bundle.writing, kept)

    def load(self, order: EngineOrder) -> LoadedEngine:
        from fastserve.serving.generation.bundled import BundledEngine

        return BundledEngine.load(order)


def check_source(text: WriterText, facts: EngineFacts, folder: Path) -> None:
    """BundleError where tokenizer and network are not of one model."""
    size = text.pipeline.tokenizer.vocabulary_size
    if size > facts.vocabulary:
        raise BundleError(
            f"{folder}: the tokenizer has {size:,} ids and the network knows {facts.vocabulary:,}; they are not of one "
            "model. Restore the folder from a copy"
        )
