"""Generation: the next token of a text, from all before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from fastserve.types import FloatArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastserve.models.causal import CausalNetwork

MOST_NATS = 700.0
"""exp of more is no float."""


class Generation:
    """Causal language modelling: every counted token of a row is predicted from those before it in its row.

    z_loss: how much the squared logarithm of the sum of a token's exponentials counts, which keeps logits small
    (Chowdhery et al. 2022, arXiv 2204.02311).
    """

    name: ClassVar[str] = "generation"
    metrics: ClassVar[Mapping[str, bool]] = {
        "loss": False,
        "perplexity": False,
        "bits_per_character": False,
        "bits_per_byte": False,
    }

    def __init__(self, *, z_loss: float = 0.0) -> None:
        self.z_loss = z_loss

    @property
    def main_metric(self) -> str:
        return "loss"

    def loss(self, network: nn.Module, inputs: Mapping[str, Any], targets: Tensor, rows: int | None = None) -> Tensor:
        """Mean over the counted tokens of the batch, in nats."""
        from fastserve.models.attention import PackedCausal
        from fastserve.tasks.token_loss import NextTokens, token_loss

        causal, tokens = cast("CausalNetwork", network), inputs["tokens"]
        counted = NextTokens.of(tokens)
        hidden = causal.hidden(tokens.values.long(), PackedCausal(tokens.offsets)).index_select(0, counted.places)
        total = token_loss(causal.head, hidden, counted.targets, counted.weights, z_loss=self.z_loss)
        return total / counted.weights.sum().clamp_min(1e-6)

    def score(self, network: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """float32 (B, 2): negative log-likelihood of a row's counted tokens in nats, and how many these are."""
        from fastserve.tasks.token_loss import row_scores

        return row_scores(cast("CausalNetwork", network), inputs["tokens"])

    def quick_metrics(self, scores: FloatArray, targets: npt.NDArray[Any]) -> dict[str, float]:
        """scores: those of `score`. targets: int64 (N, 2 or more), first the counted tokens' characters and bytes."""
        nats, tokens = scores.sum(0, dtype=np.float64).tolist()
        characters, size = targets.sum(0).tolist()[:2]
        loss = nats / max(tokens, 1)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, MOST_NATS)),
            "bits_per_character": nats / math.log(2) / max(characters, 1),
            "bits_per_byte": nats / math.log(2) / max(size, 1),
        }
