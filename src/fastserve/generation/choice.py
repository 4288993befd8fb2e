"""The next token of several texts, so that one for which none can be chosen does not harm the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve.errors import FastServeError
from fastserve.generation.choosing import Chosen, decide, no_numbers
from fastserve.generation.grammar import Follower
from fastserve.generation.sampling import Row
from fastserve.generation.sending import send


@dataclass(frozen=True, slots=True)
class Wish:
    """row: whose token is chosen; top: how many of the most probable tokens are told; follower: of its grammar, which
    goes on by the token that is chosen."""

    row: Row
    top: int = 0
    follower: Follower | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def choose_each(logits: Tensor, wishes: Sequence[Wish]) -> list[Choice | str]:
    """logits (B, V); for each row its token, or a sentence that says why there is none."""
    try:
        return list(_choices(logits, wishes))
    except FastServeError as error:
        if len(wishes) == 1:
            return [str(error)]
    return [one for row, wish in enumerate(wishes) for one in choose_each(logits[row : row + 1], [wish])]


def _choices(logits: Tensor, wishes: Sequence[Wish]) -> Iterator[Choice | str]:
    """The device is waited for once, when all that it is to compute was said."""
    allowed = {row: wish.follower.allowed() for row, wish in enumerate(wishes) if wish.follower is not None}
    decided = decide(logits, [wish.row for wish in wishes], allowed)
    best = _best(logits, decided, [wish.top for wish in wishes])
    told = torch.stack([decided.ids.double(), decided.logprobs.double(), decided.totals.double()]).tolist()
    tops = _tops(best, wishes)
    for row, (wish, token, logprob, total) in enumerate(zip(wishes, *told, strict=True)):
        if not math.isfinite(total):
            yield no_numbers(row, len(wishes))
            continue
        if wish.follower is not None:
            wish.follower.take(int(token))
        yield Choice(int(token), logprob, tops.get(row, ()))


def _best(logits: Tensor, decided: Chosen, counts: Sequence[int]) -> Tensor | None:
    """Ids and logprobs float64 (2, n, most) of the most probable tokens of the n rows that want some."""
    rows = [row for row, count in enumerate(counts) if count]
    if not rows:
        return None
    which = send(torch.tensor(rows), logits.device)
    scores = logits[which].float()
    best = scores.topk(min(max(counts), scores.shape[-1]), -1)
    return torch.stack([best.indices.double(), (best.values - decided.totals[which, None]).double()])


def _tops(best: Tensor | None, wishes: Sequence[Wish]) -> dict[int, tuple[tuple[int, float], ...]]:
    """By row."""
    if best is None:
        return {}
    wanting = ((row, wish.top) for row, wish in enumerate(wishes) if wish.top)
    return {
        row: tuple(zip(map(int, ids[:count]), logprobs[:count], strict=True))
        for (row, count), ids, logprobs in zip(wanting, *best.tolist(), strict=True)
    }
