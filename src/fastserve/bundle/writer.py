"""From a prompt or a conversation to text: the writing pipeline, the network and the engine in a row."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from fastserve import device
from fastserve.bundle.bundle import Bundle
from fastserve.errors import ConfigError, WorkError
from fastserve.types import FloatArray, Message, PlainText, Ragged

if TYPE_CHECKING:
    from fastserve.generation.engine import Engine
    from fastserve.generation.orders import Output
    from fastserve.generation.sampling import Sampling
    from fastserve.generation.writing import Written
    from fastserve.models.causal import CausalNetwork
    from fastserve.text.writing_pipeline import WritingPipeline

Prompt = str | Sequence[Message]
ENGINE_ROWS = 4
"""Texts whose cache an engine in this process keeps, those that were written before included."""
SCORED_TOKENS = 16_384
"""Most tokens whose likelihood is computed at once."""


class Writer:
    """Writes with a bundle of the task generation. What it needs is read when it is first used.

    place: a device name as torch knows it, or auto; tensor_parallel: processes that share the network (on the
    processor), of which this is the first.
    """

    def __init__(self, bundle: Bundle, place: str = "auto", *, tensor_parallel: int = 1) -> None:
        if bundle.manifest.task != "generation":
            raise ConfigError(
                f"{bundle.folder} is a model for {bundle.manifest.task}, which gives labels; only one for generation "
                "writes: use predict"
            )
        self.bundle, self.place, self.tensor_parallel = bundle, place, tensor_parallel

    @functools.cached_property
    def pipeline(self) -> WritingPipeline:
        return self.bundle.writing

    @functools.cached_property
    def network(self) -> CausalNetwork:
        if self.tensor_parallel > 1:
            from fastserve.bundle.shares import share_network

            return share_network(self.bundle, self.tensor_parallel, self.place)
        from fastserve.bundle.runtimes.torch import build_network

        network = build_network(self.bundle).to(device.pick_device(self.place))
        return cast("CausalNetwork", network.eval().requires_grad_(False))

    def write(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> list[Written]:
        """`sampling.n` texts for each prompt, in order."""
        from fastserve.generation.batch import generate
        from fastserve.generation.sampling import Sampling

        ids = [self.pipeline.ask(prompt).tolist() for prompt in prompts]
        return generate(
            self.network,
            ids,
            sampling or Sampling(),
            eos=self.pipeline.ends,
            tokenizer=self.pipeline.tokenizer,
        )

    @functools.cached_property
    def engine(self) -> Engine:
        """For a few texts at a time, which remembers what was said before."""
        from fastserve.generation.engine import Engine
        from fastserve.generation.orders import EngineOptions

        options = EngineOptions(slots=ENGINE_ROWS, rows=ENGINE_ROWS)
        return Engine(self.network, self.pipeline.tokenizer, options, eos=self.pipeline.ends)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Output]:
        """Every token when it is chosen. WorkError where the network's logits are not numbers."""
        from fastserve.generation.orders import Order

        order = Order("stream", self.pipeline.ask(prompt).tolist(), sampling)
        self.engine.add(order)
        try:
            while self.engine.has_work:
                for output in self.engine.step():
                    if output.error is not None:
                        raise WorkError(output.error)
                    yield output
        finally:
            self.engine.cancel(order.id)

    def likelihoods(self, rows: Ragged) -> FloatArray:
        """float32 (rows, 2): negative log-likelihood in nats of each row's counted tokens, and their number.

        rows: the encoding "tokens", whose weights say what counts.
        """
        import torch

        from fastserve.data.packs import packed_batches
        from fastserve.models.ragged import RaggedTensor
        from fastserve.tasks.token_loss import row_scores

        place = next(self.network.head.parameters()).device
        scores = np.zeros((len(rows), 2), np.float32)
        with torch.inference_mode():
            for batch in packed_batches(rows.lengths, SCORED_TOKENS):
                tokens = RaggedTensor.from_ragged(rows.take(batch)).to(place)
                scores[batch] = row_scores(self.network, tokens).float().cpu().numpy()
        return scores

    def nats(self, texts: Sequence[str]) -> FloatArray:
        """float32 (N,): negative log-likelihood for each token of plain texts, of as much as the network reads."""
        ids = self.pipeline.encode_texts([PlainText(text) for text in texts])
        rows = Ragged.from_rows([row[: self.network.longest] for row in ids])
        scores = self.likelihoods(rows)
        return np.asarray(scores[:, 0] / np.maximum(scores[:, 1], 1), np.float32)
