"""Which tokens of a row are hidden from an encoder, that it may learn to say them again (Devlin et al. 2018).

Of 15 % of the tokens 80 % are replaced by the mask, 10 % by any token, and 10 % stay: so that an encoder cannot tell
from a token whether it is asked for, and knows each. How many are chosen is a function of a row's length alone; which
ones is drawn at random in training, and in an evaluation a function of what the row says, so that figures of different
networks, batches and workers are of the same places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve.models.ragged import RaggedTensor

SHARE = 0.15
MASKED, REPLACED = 0.8, 0.1
"""Of the chosen tokens, those that become the mask, and those that become another token."""
MASK = 0
"""The id of the mask: that of padding, which stands in no row."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """Rows with tokens hidden.

    tokens: the rows as the network sees them; places: int64 (M,), which of the N tokens were chosen, row by row;
    targets: int64 (M,), what stood there; rows: int64 (M,).
    """

    tokens: RaggedTensor
    places: Tensor
    targets: Tensor
    rows: Tensor


def chosen(lengths: Tensor) -> Tensor:
    """int64 (B,): how many tokens of rows of these lengths are chosen; of any that has one at least one."""
    return torch.minimum((lengths * SHARE).round().long().clamp_min(1), lengths)


def at_random(tokens: RaggedTensor, vocabulary: int) -> Hidden:
    """Drawn with torch's generator."""
    drawn = torch.rand(3, len(tokens.values), dtype=torch.float64, device=tokens.values.device)
    return hide(tokens, drawn, vocabulary)


def by_content(tokens: RaggedTensor, vocabulary: int) -> Hidden:
    """The same for a row whenever it is asked, wherever it stands."""
    return hide(tokens, content_numbers(tokens), vocabulary)


def hide(tokens: RaggedTensor, numbers: Tensor, vocabulary: int) -> Hidden:
    """numbers: float64 (3, N) in [0, 1); the first decides which tokens are chosen, the second what becomes of each,
    the third which other token it becomes. vocabulary: how many ids there are."""
    rows, ids = tokens.rows, tokens.values.long()
    order = torch.argsort(rows + numbers[0])  # row by row, and within a row at random
    place = torch.arange(len(ids), device=ids.device) - tokens.offsets[rows]
    places = order[place < chosen(tokens.lengths)[rows]]
    fate, other = numbers[1, places], (numbers[2, places] * vocabulary).long()
    targets = ids[places]
    seen = torch.where(fate < MASKED, MASK, torch.where(fate < MASKED + REPLACED, other, targets))
    return Hidden(tokens.with_values(ids.index_copy(0, places, seen)), places, targets, rows[places])


def content_numbers(tokens: RaggedTensor) -> Tensor:
    """float64 (3, N) in [0, 1), as if drawn at random, from each row's ids and their places alone."""
    rows = tokens.rows
    place = torch.arange(len(rows), device=rows.device) - tokens.offsets[rows]
    each = scrambled(scrambled(tokens.values.long()) + place)
    keys = torch.zeros(len(tokens), dtype=torch.int64, device=rows.device).index_add_(0, rows, each)
    drawn = [scrambled(scrambled(keys[rows] + number) + place) for number in range(3)]
    return _right(torch.stack(drawn), 11).double() / 2.0**53


def scrambled(values: Tensor) -> Tensor:
    """int64 to int64, one to one and without a pattern: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = values + -0x61C8864680B583EB
    values = (values ^ _right(values, 30)) * -0x40A7B892E31B1A47
    values = (values ^ _right(values, 27)) * -0x6B2FB644ECCEEE15
    return values ^ _right(values, 31)


def _right(values: Tensor, bits: int) -> Tensor:
    """Shifted with zeros coming in."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
