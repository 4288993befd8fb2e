"""The engine of a bundle, and the plain loop that it is checked against. In the engine's process only: torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.writer import Writer
from fastserve.generation.sampling import Sampling
from fastserve.generation.writing import Written
from fastserve.serving.generation.source import ServedEngine
from fastserve.serving.generation.wire import EngineFacts, EngineOrder, Referred
from fastserve.types import PlainText, Ragged

TIE = 0.01
"""Logits that lie nearer to each other are told apart by the order in which numbers are added up."""


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
        writer = Writer(Bundle.load(Path(order.folder)), tensor_parallel=order.options.tensor_parallel)
        pipeline, network = writer.pipeline, writer.network
        adapters = {name: Path(folder) for name, folder in order.adapters.items()}
        engine = Engine(network, pipeline.tokenizer, order.options, eos=pipeline.ends, adapters=adapters)
        engine.prepare()
        if engine.precision != "float32" and (kept := writer.bundle.manifest.parity):
            texts = [PlainText(row.text) for row in kept]
            engine.check_loss([ids[: network.longest].tolist() for ids in pipeline.encode_texts(texts)])
        vocabulary = int(writer.bundle.manifest.network.shape["outputs"])
        return cls(writer, engine, EngineFacts(network.longest, vocabulary, engine.precision, _weight_bytes(network)))

    def refer(self, prompts: Sequence[Sequence[int]], tokens: int, texts: Sequence[str]) -> Referred:
        """By `generation.reference`, with the weights that were loaded."""
        pipeline, network = self.writer.pipeline, self.writer.network
        found = self._plain(prompts, tokens) if prompts else []
        sure = [self._sure(prompt, one.ids) for prompt, one in zip(prompts, found, strict=True)]
        said = [
            one.text if count == len(one.ids) else pipeline.tokenizer.stream(after=prompt).push(one.ids[:count])
            for prompt, one, count in zip(prompts, found, sure, strict=True)
        ]
        rows = [ids[: network.longest] for ids in pipeline.encode_texts([PlainText(text) for text in texts])]
        scores = self.writer.likelihoods(Ragged.from_rows(rows)) if rows else np.zeros((0, 2), np.float32)
        nats = scores[:, 0] / np.maximum(scores[:, 1], 1)
        whole = [count == len(one.ids) for count, one in zip(sure, found, strict=True)]
        return Referred(said, whole, nats.tolist())

    def _plain(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Written]:
        from fastserve.generation.parallel import SharedNetwork
        from fastserve.generation.reference import generate

        pipeline, network = self.writer.pipeline, self.writer.network
        if isinstance(network, SharedNetwork):
            return network.greedy(prompts, tokens, eos=pipeline.ends, tokenizer=pipeline.tokenizer)
        greedy = Sampling(temperature=0, max_tokens=tokens)
        return generate(network, prompts, greedy, eos=pipeline.ends, tokenizer=pipeline.tokenizer)

    def _sure(self, prompt: Sequence[int], written: Sequence[int]) -> int:
        """How many tokens were written before the best two were as good as each other, within rounding."""
        import torch

        from fastserve.models.attention import PackedCausal

        network = self.writer.network
        place = next(network.head.parameters()).device
        ids = torch.tensor([*prompt, *written[:-1]], device=place)
        with torch.inference_mode():
            hidden = network.hidden(ids, PackedCausal(torch.tensor([0, len(ids)], device=place)))
            best = network.head(hidden[len(prompt) - 1 :]).float().topk(2, -1).values
        close = (best[:, 0] - best[:, 1] < TIE).nonzero()
        return int(close[0]) if len(close) else len(written)


def _weight_bytes(network: Any) -> list[int]:
    """Of each process that has a share of the network."""
    from fastserve.generation.parallel import SharedNetwork

    if isinstance(network, SharedNetwork):
        return network.weight_bytes
    return [sum(parameter.nbytes for parameter in network.parameters())]
