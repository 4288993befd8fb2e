"""The engine of a bundle, and the plain loop that it is checked against. In the engine's process only: torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.writer import Writer
from fastserve.generation.sampling import Sampling
from fastserve.serving.generation.source import ServedEngine
from fastserve.serving.generation.wire import EngineFacts, EngineOrder, Referred
from fastserve.types import PlainText, Ragged


class BundledEngine:
    """A writer's network behind an engine."""

    def __init__(self, writer: Writer, engine: ServedEngine, facts: EngineFacts) -> None:
        self.writer, self.engine, self.facts = writer, engine, facts

    @classmethod
    def load(cls, order: EngineOrder) -> Self:
        """Read the folder, its checksums included. FastServeError where it cannot write."""
        import torch

        from fastserve.generation.engine import Engine

        torch.set_num_threads(order.threads)
        writer = Writer(Bundle.load(Path(order.folder)))
        pipeline, network = writer.pipeline, writer.network
        engine = Engine(network, pipeline.tokenizer, order.options, eos=pipeline.ends)
        engine.prepare()
        precision = str(getattr(engine, "precision", "float32"))
        vocabulary = int(writer.bundle.manifest.network.shape["outputs"])
        return cls(writer, engine, EngineFacts(network.longest, vocabulary, precision))

    def refer(self, prompts: Sequence[Sequence[int]], tokens: int, texts: Sequence[str]) -> Referred:
        """By `generation.reference`, with the weights that were loaded."""
        from fastserve.generation.reference import generate

        pipeline, network = self.writer.pipeline, self.writer.network
        greedy = Sampling(temperature=0, max_tokens=tokens)
        found = generate(network, prompts, greedy, eos=pipeline.ends, tokenizer=pipeline.tokenizer) if prompts else []
        rows = [ids[: network.longest] for ids in pipeline.encode_texts([PlainText(text) for text in texts])]
        scores = self.writer.likelihoods(Ragged.from_rows(rows)) if rows else np.zeros((0, 2), np.float32)
        nats = scores[:, 0] / np.maximum(scores[:, 1], 1)
        return Referred([one.ids for one in found], [one.text for one in found], nats.tolist())
