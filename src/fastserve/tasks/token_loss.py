"""Cross-entropy of the next token without the logits of all tokens: they would be the largest tensor of a step.

Logits of some tokens at a time are made, and their gradients at once in the forward pass, so that nothing of the size
(N, V) is ever kept (Hsu et al. 2024, arXiv 2410.10989). `plain_token_loss` is the formula itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastserve.models.attention import PackedCausal

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
    logits = head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
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
        return _in_chunks(head, hidden, targets, weights, z_loss, chunk)[0]
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
    parameters: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loss, and where parameters of the head are given the gradients of hidden and of them."""
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    of_hidden = torch.empty_like(hidden) if parameters is not None else hidden
    of_parameters = [torch.zeros_like(parameter) for parameter in parameters or ()]
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        if parameters is None:
            total += plain_token_loss(head, hidden[part], targets[part], weights[part], z_loss=z_loss)
            continue
        with torch.enable_grad():
            piece = hidden[part].detach().requires_grad_()
            loss = plain_token_loss(head, piece, targets[part], weights[part], z_loss=z_loss)
        found = torch.autograd.grad(loss, [piece, *parameters])
        total += loss.detach()
        of_hidden[part] = found[0]
        for sum_, gradient in zip(of_parameters, found[1:], strict=True):
            sum_ += gradient
    return total, of_hidden, of_parameters


def row_scores(network: CausalNetwork, tokens: RaggedTensor, *, chunk: int = CHUNK) -> Tensor:
    """float32 (B, 2): summed negative log-likelihood (nats) of each row's counted tokens, and their weights' sum.

    No gradient. tokens: the encoding "tokens" of a batch.
    """
    with torch.no_grad():
        counted = NextTokens.of(tokens)
        hidden = network.hidden(tokens.values.long(), PackedCausal(tokens.offsets))[counted.places]
        losses = [
            functional.cross_entropy(network.head(piece).float(), targets, reduction="none")
            for piece, targets in zip(torch.split(hidden, chunk), torch.split(counted.targets, chunk), strict=True)
        ]
        scores = torch.zeros(len(tokens), 2, device=hidden.device)
        pairs = torch.stack([torch.cat(losses) * counted.weights, counted.weights], 1)
        return scores.index_add(0, counted.rows, pairs)
