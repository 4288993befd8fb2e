"""The maximum over a text of what convolution filters answer, from the products of filter offsets with distinct words.

Forward is a gather and a sum; backward touches only the places where each filter was strongest. The plain form is
`TextCnn.pooled_plainly`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NEVER = -1e30
"""What a filter answers at a place outside the text: less than any real answer, and finite in bfloat16 too."""


def strongest_sums(products: Tensor, places: Tensor, mask: Tensor, widths: Sequence[int]) -> Tensor:
    """For each text and filter the maximum over positions t in the text of sum over o of products[places[:, t + o], o].

    products: (U + 1, offsets * filters), offsets = sum(widths), ordered by width, offset, filter; the last row is zero.
    places: int64 (B, T), rows of `products`, U where `mask`, bool (B, T), says that the text has ended.
    Returns (B, widths * filters) in the type of `products`; NEVER for an empty text.
    """
    found: Tensor = _StrongestSums.apply(products, places, mask, tuple(widths))  # type: ignore[no-untyped-call]
    return found


class _StrongestSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Tensor, places: Tensor, mask: Tensor, widths: tuple[int, ...]) -> Tensor:
        offsets = sum(widths)
        table = products.view(products.shape[0] * offsets, -1)  # row = place * offsets + offset
        padded = functional.pad(places, (0, max(widths) - 1), value=products.shape[0] - 1) * offsets
        values, rows, first = [], [], 0
        for width in widths:
            index = padded.unfold(1, width, 1)[:, : mask.shape[1]]
            index = index + torch.arange(first, first + width, device=index.device)  # (B, T, width)
            sums = functional.embedding_bag(index.reshape(-1, width), table, mode="sum")
            sums = sums.view(*mask.shape, -1).masked_fill_(~mask[..., None], NEVER)
            strongest, where = sums.max(1)  # (B, F)
            values.append(strongest)
            rows.append(index.gather(1, where[..., None].expand(-1, -1, width)))  # (B, F, width)
            first += width
        ctx.save_for_backward(*rows)
        ctx.shape = products.shape
        return torch.cat(values, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows: tuple[Tensor, ...] = ctx.saved_tensors
        filters = rows[0].shape[1]
        column = torch.arange(filters, device=gradient.device)[:, None]
        index = torch.cat([(row * filters + column).flatten() for row in rows])
        parts = torch.split(gradient.float(), filters, 1)
        spread = torch.cat([p[..., None].expand_as(row).flatten() for p, row in zip(parts, rows, strict=True)])
        summed = torch.zeros(ctx.shape.numel(), device=gradient.device).scatter_add_(0, index, spread)
        return summed.view(ctx.shape).to(gradient.dtype), None, None, None
