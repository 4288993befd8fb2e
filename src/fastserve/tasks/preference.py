"""Preference tuning: of two answers the better one shall become the more probable one, beside what it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from fastserve.types import FloatArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastserve.models.causal import CausalNetwork

CHOSEN, REJECTED = "tokens", "rejected"
"""The encodings of the two answers, each with its prompt."""


class PreferenceTuning:
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290).

    targets: float32 (B, 2), log-likelihoods of the chosen and the rejected answer under the network as it was before
    the first step: computed once for all, so that no second network is kept. beta: how much it may leave that one
    (little where beta is large). likelihood: how much the mean negative log-likelihood of chosen answers counts beside
    it, which keeps them from becoming rarer themselves (Pang et al. 2024, arXiv 2404.19733).
    """

    name: ClassVar[str] = "preference"
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "accuracy": True, "margin": True, "win_rate": True}

    def __init__(self, *, beta: float = 0.1, likelihood: float = 0.0) -> None:
        self.beta, self.likelihood = beta, likelihood

    @property
    def main_metric(self) -> str:
        return "loss"

    def loss(self, network: nn.Module, inputs: Mapping[str, Any], targets: Tensor, rows: int | None = None) -> Tensor:
        """Mean over pairs. Its gradient passes through the tokens' losses, weighted by what their row's counts for."""
        import torch

        from fastserve.tasks.token_loss import NextTokens, token_losses

        causal, tokens = cast("CausalNetwork", network), joined(inputs)
        counted = NextTokens.of(tokens)
        hidden = _hidden(causal, tokens, counted)
        with torch.no_grad():
            losses = token_losses(causal.head, hidden, counted.targets)
        sums = losses.new_zeros(len(tokens)).index_add(0, counted.rows, losses).requires_grad_()
        sizes = torch.zeros_like(sums).index_add(0, counted.rows, torch.ones_like(losses)).detach().clamp_min(1)
        value = self.of_sums(sums, sizes, targets)
        (of_sums,) = torch.autograd.grad(value, sums)
        return value.detach() + _with_gradient(causal, hidden, counted, of_sums[counted.rows])

    def of_sums(self, nats: Tensor, sizes: Tensor, targets: Tensor) -> Tensor:
        """The loss from negative log-likelihoods of the answers and their tokens, (2 B,): all chosen, then rejected."""
        from torch.nn import functional

        chosen, rejected = (-nats).chunk(2)
        margin = self.beta * ((chosen - targets[:, 0]) - (rejected - targets[:, 1]))
        losses = -functional.logsigmoid(margin)
        return (losses - self.likelihood * chosen / sizes[: len(chosen)]).mean()

    def score(self, network: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """float32 (B, 2): log-likelihoods of the chosen and the rejected answer."""
        import torch

        from fastserve.tasks.token_loss import row_scores

        scores = row_scores(cast("CausalNetwork", network), joined(inputs))
        return -torch.stack(scores[:, 0].chunk(2), 1)

    def quick_metrics(self, scores: FloatArray, targets: npt.NDArray[Any]) -> dict[str, float]:
        """accuracy: share of pairs whose margin has grown beside the start; win_rate: whose chosen answer is the more
        probable one; margin: beta times the mean growth of the distance between the two.
        """
        distance = (scores[:, 0] - scores[:, 1]).astype(np.float64)
        grown = self.beta * (distance - (targets[:, 0] - targets[:, 1]))
        return {
            "loss": float(np.logaddexp(0, -grown).mean()),
            "accuracy": float((grown > 0).mean()),
            "margin": float(grown.mean()),
            "win_rate": float((distance > 0).mean()),
        }


def joined(inputs: Mapping[str, Any]) -> Any:
    """All chosen rows and then all rejected ones, as one `RaggedTensor`."""
    import torch

    from fastserve.models.ragged import RaggedTensor

    first, second = inputs[CHOSEN], inputs[REJECTED]
    return RaggedTensor(
        torch.cat([first.values, second.values]),
        torch.cat([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        torch.cat([first.weights, second.weights]),
    )


def _hidden(network: CausalNetwork, tokens: Any, counted: Any) -> Tensor:
    from fastserve.models.attention import PackedCausal

    hidden = network.hidden(tokens.values.long(), PackedCausal(tokens.offsets))
    return hidden.index_select(0, counted.places)


def _with_gradient(network: CausalNetwork, hidden: Tensor, counted: Any, weights: Tensor) -> Tensor:
    """Zero, whose gradient is that of the tokens' losses, each times its weight."""
    from fastserve.tasks.token_loss import token_loss

    total = token_loss(network.head, hidden, counted.targets, weights)
    return total - total.detach()
