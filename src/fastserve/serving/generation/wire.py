"""What a worker and its engine tell each other: JSON objects, one a line, over a socket pair. Never pickle.

To the engine: add (an order), cancel, refer. From it: ready or failed, accepted or refused, outputs, stats, referred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import Field

from fastserve.config import Section
from fastserve.errors import FastServeError, Overloaded, UserError
from fastserve.generation.orders import EngineOptions, EngineStats, Grammar, Order, Output
from fastserve.generation.sampling import Sampling


class EngineOrder(Section):
    """The first line to an engine's process: all that it has to know.

    source: the WriterSource as module:Class; adapters: folders of LoRA adapters by the names by which they are asked.
    """

    folder: str
    adapters: dict[str, str] = Field(default_factory=dict)
    source: str
    options: EngineOptions
    threads: int


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself when it is ready.

    longest: most tokens of a prompt and what follows it; vocabulary: ids that the network knows; precision: what it
    computes in; weight_bytes: of the weights as they were read, for each process that shares the network.
    """

    longest: int
    vocabulary: int
    precision: str
    weight_bytes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Referred:
    """What the plain loop writes after some prompts, greedily, and the nats for each token that texts have.

    texts: as far as no two tokens were as good as each other, which is to the end where `whole`.
    """

    texts: list[str] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an engine does not take an order: `overloaded` passes, `input` stays."""

    kind: Literal["input", "overloaded", "defect"]
    message: str
    retry_after: float = 1.0

    @classmethod
    def of(cls, error: FastServeError) -> Refusal:
        if isinstance(error, Overloaded):
            return cls("overloaded", str(error), error.retry_after)
        return cls("input" if isinstance(error, UserError) else "defect", str(error))


def write_order(order: Order) -> dict[str, Any]:
    """As JSON; what has its usual value is left out."""
    content: dict[str, Any] = {"id": order.id, "prompt": list(order.prompt)}
    content["sampling"] = order.sampling.model_dump(exclude_defaults=True)
    for name in ("priority", "key", "adapter", "top_logprobs"):
        if value := getattr(order, name):
            content[name] = value
    if order.grammar is not None:
        content["grammar"] = asdict(order.grammar)
    return content


def read_order(content: Mapping[str, Any]) -> Order:
    """What `write_order` wrote."""
    fields = dict(content)
    grammar = fields.pop("grammar", None)
    return Order(
        **{**fields, "sampling": Sampling.model_validate(fields["sampling"])},
        grammar=None if grammar is None else Grammar(**grammar),
    )


def write_output(output: Output) -> list[Any]:
    """As a JSON list, in the order of the fields."""
    return [
        output.id,
        output.copy,
        output.token,
        output.text,
        output.logprob,
        output.top,
        output.finish_reason,
        output.error,
        output.cached,
    ]


def read_output(content: Sequence[Any]) -> Output:
    """What `write_output` wrote."""
    name, copy, token, text, logprob, top, finish_reason, error, cached = content
    alternatives = tuple((token, logprob) for token, logprob in top)
    return Output(name, copy, token, text, logprob, alternatives, finish_reason, error, cached)


def read_stats(content: Mapping[str, Any]) -> EngineStats:
    return EngineStats(**{**content, "levels": tuple(content.get("levels", ()))})
