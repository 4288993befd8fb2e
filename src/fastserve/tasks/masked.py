"""Masked tokens: what stood at the places of a text that were hidden (Devlin et al. 2018, arXiv 1810.04805)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from fastserve.tasks.generation import MOST_NATS
from fastserve.types import FloatArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastserve.models.masked import MaskedEncoder


class Masked:
    """Masked-language modelling: an encoder learns the words of a text from both sides, without labels.

    Places are drawn at random in training; in an evaluation they depend on nothing but what a row says.
    vocabulary: how many token ids there are.
    """

    name: ClassVar[str] = "masked"
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "perplexity": False, "accuracy": True}

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    @property
    def main_metric(self) -> str:
        return "loss"

    def loss(self, network: nn.Module, inputs: Mapping[str, Any], targets: Tensor, rows: int | None = None) -> Tensor:
        """Mean over the hidden tokens of the batch, in nats."""
        import torch

        from fastserve.models.masking import at_random
        from fastserve.tasks.token_loss import token_loss

        encoder, hidden = cast("MaskedEncoder", network), at_random(inputs["tokens"], self.vocabulary)
        vectors = encoder.hidden(hidden.tokens, hidden.places)
        weights = torch.ones(len(hidden.targets), device=vectors.device)
        total = token_loss(encoder.head, vectors, hidden.targets, weights)
        return total / max(len(hidden.targets), 1)

    def score(self, network: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """float32 (B, 3): negative log-likelihood in nats of a row's hidden tokens, how many of them have the highest
        probability, and how many there are."""
        import torch
        from torch.nn import functional

        from fastserve.models.masking import by_content
        from fastserve.tasks.token_loss import CHUNK

        encoder, tokens = cast("MaskedEncoder", network), inputs["tokens"]
        hidden, head = by_content(tokens, self.vocabulary), encoder.head
        found = []
        vectors = encoder.hidden(hidden.tokens, hidden.places)
        for piece, truth in zip(torch.split(vectors, CHUNK), torch.split(hidden.targets, CHUNK), strict=True):
            logits = head(piece).float()
            nats = functional.cross_entropy(logits, truth, reduction="none")
            found.append(torch.stack([nats, (logits.argmax(1) == truth).float(), torch.ones_like(nats)], 1))
        return torch.zeros(len(tokens), 3, device=hidden.rows.device).index_add(0, hidden.rows, torch.cat(found))

    def quick_metrics(self, scores: FloatArray, targets: npt.NDArray[Any]) -> dict[str, float]:
        """scores: those of `score`."""
        return figures(*scores.sum(0, dtype=np.float64).tolist())


def figures(nats: float, right: float, tokens: float) -> dict[str, float]:
    """The figures of so many hidden tokens."""
    loss = nats / max(tokens, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, MOST_NATS)), "accuracy": right / max(tokens, 1)}
