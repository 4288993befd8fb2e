"""Cross-entropy of the next token without the logits of all tokens: they would be the largest tensor of a step.

Logits of some tokens at a time are made, and their gradients at once in the forward pass, so that nothing of the size
(N, V) is ever kept (Hsu et al. 2024, arXiv 2410.10989). `plain_token_loss` is the formula itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fastserve.models.attention import PackedCausal
from fastserve.models.causal import TiedHead
from fastserve.models.native import fused as native

if TYPE_CHECKING:
    from fastserve.models.causal import CausalNetwork
    from fastserve.models.ragged import RaggedTensor

CHUNK = 512
"""Tokens whose logits exist at a time."""


@dataclass(frozen=True, slots=True)
class NextTokens:
    """What is predicted from where: of N tokens those before a counted target.

    places: int64 (M,) of the hidden vectors; targets: int64 (M,) ids that follow; weights: float32 (M,), not 0; rows:
    int64 (M,).
    """

    places: Tensor
    targets: Tensor
    weights: Tensor
    rows: Tensor

    @classmethod
    def of(cls, tokens: RaggedTensor) -> NextTokens:
        """The first token of a row is no target; others count as their weights say, or all where there are none."""
        is_target = torch.ones(len(tokens.values), dtype=torch.bool, device=tokens.values.device)
        is_target[tokens.offsets[:-1][tokens.lengths > 0]] = False
        if tokens.weights is not None:
            is_target &= tokens.weights != 0
        at = is_target.nonzero()[:, 0]
        ids = tokens.values.index_select(0, at).long()
        weights = torch.ones_like(ids, dtype=torch.float32) if tokens.weights is None else tokens.weights[at]
        return cls(at - 1, ids, weights, tokens.rows[at])


def plain_token_loss(
    head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor, *, z_loss: float = 0.0
) -> Tensor:
    """Sum over tokens of weight * (cross-entropy + z_loss * log(sum(exp(logits)))^2)

    hidden (M, dim), targets int64 (M,), weights (M,). z_loss keeps logits small (Chowdhery et al. 2022, PaLM).
    """
    logits = _wide(head(hidden))
    losses = functional.cross_entropy(logits, targets, reduction="none")
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(-1).square()
    return (losses * weights.to(losses.dtype)).sum()


def token_loss(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    z_loss: float = 0.0,
    chunk: int = CHUNK,
) -> Tensor:
    """As `plain_token_loss`, with logits of `chunk` tokens at a time."""
    if not torch.is_grad_enabled():
        pieces = zip(*(torch.split(part, chunk) for part in (hidden, targets, weights)), strict=True)
        return torch.stack([plain_token_loss(head, *piece, z_loss=z_loss) for piece in pieces]).sum()
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    loss: Tensor = _TokenLoss.apply(  # type: ignore[no-untyped-call]
        hidden, targets, weights, head, z_loss, chunk, *parameters
    )
    return loss


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor,
        head: nn.Module,
        z_loss: float,
        chunk: int,
        *parameters: Tensor,
    ) -> Tensor:
        loss, of_hidden, gradients = _in_chunks(head, hidden, targets, weights, z_loss, chunk, parameters)
        ctx.save_for_backward(of_hidden, *gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, *of_parameters = ctx.saved_tensors
        return of_hidden * gradient, None, None, None, None, None, *(part * gradient for part in of_parameters)


def _in_chunks(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    z_loss: float,
    chunk: int,
    parameters: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loss and the gradients of hidden and of the head's trained parameters."""
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    of_hidden, of_parameters = torch.empty_like(hidden), [torch.zeros_like(parameter) for parameter in parameters]
    matrix = _matrix_of(head)
    if matrix is not None:
        matrix, hidden = matrix.to(_computed_in(hidden)), hidden.to(_computed_in(hidden))
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        pieces = (hidden[part], targets[part], weights[part])
        if matrix is None:
            total += _by_autograd(head, *pieces, z_loss, of_hidden[part], parameters, of_parameters)
        else:
            total += _by_hand(matrix, *pieces, z_loss, of_hidden[part], of_parameters)
    return total, of_hidden, of_parameters


def _matrix_of(head: nn.Module) -> Tensor | None:
    """The weights (V, dim) of a head that is a product with a matrix and no more."""
    if isinstance(head, TiedHead):
        return head.weight
    return head.weight if type(head) is nn.Linear and head.bias is None else None


def _by_autograd(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    z_loss: float,
    of_hidden: Tensor,
    parameters: tuple[Tensor, ...],
    of_parameters: list[Tensor],
) -> Tensor:
    """Loss of some tokens; writes the gradient of hidden, and adds to those of parameters."""
    with torch.enable_grad():
        piece = hidden.detach().requires_grad_()
        loss = plain_token_loss(head, piece, targets, weights, z_loss=z_loss)
    gradients = torch.autograd.grad(loss, [piece, *parameters])
    of_hidden.copy_(gradients[0])
    for together, gradient in zip(of_parameters, gradients[1:], strict=True):
        together.add_(gradient)
    return loss.detach()


def _by_hand(
    matrix: Tensor,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    z_loss: float,
    of_hidden: Tensor,
    of_parameters: list[Tensor],
) -> Tensor:
    """As `_by_autograd`, for a matrix: in fewer passes over the logits."""
    gradient, losses = _entropy(hidden @ matrix.T, targets, weights.to(_widened(hidden.dtype)), z_loss)
    of_hidden.copy_(gradient @ matrix)
    for together in of_parameters:  # one or, where the head is frozen, none
        if together.dtype == hidden.dtype:
            together.addmm_(gradient.T, hidden)
        else:
            together.add_(gradient.T @ hidden)
    return losses.sum()


def _entropy(logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """The gradients of the logits, of their type, and the weighted losses (M,). The logits may be overwritten."""
    if native.serves(logits, logits.shape[1]):
        losses, whole = native.entropy_(logits, targets, weights, z_loss)
        return logits, (losses + z_loss * whole.square()) * weights
    wide = _wide(logits)
    shares = torch.log_softmax(wide, -1)
    losses = -shares.gather(1, targets[:, None])[:, 0]
    whole = wide.gather(1, targets[:, None])[:, 0] + losses  # log(sum(exp)), without a pass of its own
    slope = weights * (1 + 2 * z_loss * whole)
    shares.exp_().mul_(slope[:, None]).scatter_add_(1, targets[:, None], -weights[:, None])
    return shares.to(logits.dtype), (losses + z_loss * whole.square()) * weights


def _wide(logits: Tensor) -> Tensor:
    return logits.to(_widened(logits.dtype))


def _widened(dtype: torch.dtype) -> torch.dtype:
    """Float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _computed_in(hidden: Tensor) -> torch.dtype:
    """What products are computed in, as autocast wants it."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def token_losses(head: nn.Module, hidden: Tensor, targets: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Cross-entropy (M,) of each token, float32 at least, with logits of `chunk` tokens at a time. No gradient."""
    with torch.no_grad():
        pieces = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
        return torch.cat([functional.cross_entropy(_wide(head(piece)), ids, reduction="none") for piece, ids in pieces])


def row_scores(network: CausalNetwork, tokens: RaggedTensor, *, chunk: int = CHUNK) -> Tensor:
    """float32 (B, 2): summed negative log-likelihood (nats) of each row's counted tokens, and their weights' sum.

    No gradient. tokens: the encoding "tokens" of a batch.
    """
    with torch.no_grad():
        counted = NextTokens.of(tokens)
        hidden = network.hidden(tokens.values.long(), PackedCausal(tokens.offsets))[counted.places]
        losses = token_losses(network.head, hidden, counted.targets, chunk=chunk).float()
        pairs = torch.stack([losses * counted.weights, counted.weights], 1)
        return torch.zeros(len(tokens), 2, device=hidden.device).index_add(0, counted.rows, pairs)
