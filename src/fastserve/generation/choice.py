"""The next token of several texts, so that one for which none can be chosen does not harm the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve.errors import FastServeError
from fastserve.generation.choosing import Chosen, choose
from fastserve.generation.grammar import Follower
from fastserve.generation.sampling import Row


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


def _choices(logits: Tensor, wishes: Sequence[Wish]) -> list[Choice]:
    followers = {row: wish.follower for row, wish in enumerate(wishes) if wish.follower is not None}
    allowed = {row: follower.allowed().to(logits.device) for row, follower in followers.items()}
    chosen = choose(logits, [wish.row for wish in wishes], allowed)
    for row, follower in followers.items():
        follower.take(int(chosen.ids[row]))
    tops = _tops(logits, chosen, [wish.top for wish in wishes])
    return [
        Choice(token, logprob, tops.get(row, ()))
        for row, (token, logprob) in enumerate(zip(chosen.ids.tolist(), chosen.logprobs.tolist(), strict=True))
    ]


def _tops(logits: Tensor, chosen: Chosen, counts: Sequence[int]) -> dict[int, tuple[tuple[int, float], ...]]:
    """The most probable tokens and their logprobs, of the rows that want some."""
    rows = [row for row, count in enumerate(counts) if count]
    if not rows:
        return {}
    scores = logits[rows].float()
    best = scores.topk(min(max(counts), scores.shape[-1]), -1)
    logs = (best.values - scores.logsumexp(-1, keepdim=True)).tolist()
    return {
        row: tuple(zip(ids[: counts[row]], found[: counts[row]], strict=True))
        for row, ids, found in zip(rows, best.indices.tolist(), logs, strict=True)
    }
