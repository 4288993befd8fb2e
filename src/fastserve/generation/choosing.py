"""Logits to the next tokens: every row by its own rules and its own random numbers, all rows at once.

The order is that of vLLM (docs.vllm.ai, `vllm.v1.sample.sampler`): bias; repetition, frequency and presence penalties;
greedy rows take the largest; the others temperature, min-p, top-k, top-p, and a draw. Hugging Face's processors do each
step alike, but min-p after top-p. Log-probabilities are the model's own, before any of this, so that they compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastserve.errors import ConfigError, WorkError
from fastserve.generation.sampling import Row, Sampling
from fastserve.generation.sending import send


@dataclass(frozen=True, slots=True)
class Chosen:
    """The next token of each row: ids int64 (B,); logprobs float32 (B,), natural logarithms; totals float32 (B,), of
    the sum of all exp(logits), which are finite where the logits are numbers."""

    ids: Tensor
    logprobs: Tensor
    totals: Tensor


NOTHING: Mapping[int, Tensor] = {}


def choose(logits: Tensor, rows: Sequence[Row], allowed: Mapping[int, Tensor] = NOTHING) -> Chosen:
    """logits: (B, V) of any float type, left as they are; rows: B; allowed: the tokens bool (V,) that a row may take,
    where not all.

    A row's token depends on its own logits and its own `Row` alone, of which `draws` moves on by one number (where the
    temperature is not 0). WorkError where the logits are not numbers, ConfigError for a bias of an unknown token.
    """
    chosen = decide(logits, rows, allowed)
    bad = (~chosen.totals.isfinite()).nonzero()
    if len(bad):
        raise WorkError(no_numbers(int(bad[0]), len(rows)))
    return chosen


def decide(logits: Tensor, rows: Sequence[Row], allowed: Mapping[int, Tensor] = NOTHING) -> Chosen:
    """As `choose`, but whether logits are numbers is for the caller to see: of rows where they are none some token is
    chosen. No device is waited for."""
    logits = logits.float()
    totals = logits.logsumexp(-1)
    scores = restrict(adjust(logits, rows), logits, allowed)
    drawn = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
    if len(drawn) == len(rows):
        ids = _draw(scores, rows)
    else:
        ids = scores.argmax(-1)
        if drawn:
            which = _which(drawn, scores)
            ids[which] = _draw(scores[which], [rows[index] for index in drawn])
    return Chosen(ids, logits.gather(1, ids[:, None])[:, 0] - totals, totals)


def no_numbers(row: int, rows: int) -> str:
    """What is said of a row of a network's logits."""
    return (
        f"the network gave logits that are not numbers for row {row} of {rows}: its weights are damaged or its "
        "training diverged; train again with a lower train.learning_rate"
    )


def _which(rows: Sequence[int], scores: Tensor) -> Tensor | slice:
    """An index of some rows of the scores, by which nothing is copied where they are all."""
    return slice(None) if len(rows) == len(scores) else send(torch.tensor(rows, dtype=torch.int64), scores.device)


def adjust(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Bias and penalties: float32 (B, V), the same tensor where no row wants any."""
    if not any(row.sampling.logit_bias or row.sampling.penalizes for row in rows):
        return logits
    scores = logits.clone()
    for index, row in enumerate(rows):
        _bias(scores[index], row.sampling)
        if row.sampling.penalizes:
            _penalize(scores[index], row)
    return scores


def restrict(scores: Tensor, logits: Tensor, allowed: Mapping[int, Tensor]) -> Tensor:
    """-inf for what a row may not take: float32 (B, V); the logits that the scores were made of are left as they are.

    WorkError where a row may take nothing.
    """
    if not allowed:
        return scores
    scores = scores.clone() if scores is logits else scores
    for index, tokens in allowed.items():
        if not tokens.any():
            raise WorkError("the grammar of a text allows no token of the vocabulary to follow")
        scores[index].masked_fill_(~send(tokens, scores.device), -torch.inf)
    return scores


def _bias(scores: Tensor, sampling: Sampling) -> None:
    """In place, of one row (V,)."""
    if not sampling.logit_bias:
        return
    if max(sampling.logit_bias) >= len(scores):
        raise ConfigError(
            f"logit_bias names the token {max(sampling.logit_bias)}, but the vocabulary has {len(scores)} tokens: "
            f"expected ids from 0 to {len(scores) - 1}"
        )
    ids = send(torch.tensor(list(sampling.logit_bias)), scores.device)
    scores[ids] += send(torch.tensor(list(sampling.logit_bias.values())), scores.device)


def _penalize(scores: Tensor, row: Row) -> None:
    """In place, of one row (V,). Repetition: Keskar et al. 2019 (CTRL), as Hugging Face and vLLM apply it, over prompt
    and text; frequency and presence: OpenAI's "logit - c * frequency - (c > 0) * presence", over the text alone."""
    rules = row.sampling
    if rules.repetition_penalty != 1:
        seen = _tensor(np.unique([*row.prompt, *row.written]), scores.device)
        found = scores[seen]
        scores[seen] = torch.where(found > 0, found / rules.repetition_penalty, found * rules.repetition_penalty)
    if row.written:
        ids, counts = np.unique(row.written, return_counts=True)
        scores[_tensor(ids, scores.device)] -= (
            rules.frequency_penalty * _tensor(counts, scores.device) + rules.presence_penalty
        )


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return send(torch.from_numpy(array.astype(np.int64)), device)


def _draw(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """One id a row (B,), by inverting the cumulated probabilities (B, V) at a uniform number of the row's own.

    Tokens stay in the order of the vocabulary, also where no neighbor needs them sorted: a row's draw is its own.
    """
    probabilities = distribution(scores, [row.sampling for row in rows])
    cumulated = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    uniform = torch.tensor([[row.draws.random()] for row in rows], dtype=torch.float64)
    uniform = send(uniform, scores.device)
    place = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))  # rounding may reach total
    found = torch.searchsorted(cumulated, place, right=True)[:, 0]
    return found.clamp_(max=scores.shape[-1] - 1)  # where the scores are not numbers, it is beyond the last


def distribution(scores: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """The probabilities (B, V) that are drawn from: temperature, min-p, top-k and top-p of `scores`."""
    temperatures = send(torch.tensor([[rules.temperature] for rules in samplings]), scores.device)
    scores = (scores - scores.amax(-1, keepdim=True)) / temperatures
    wanting = [index for index, rules in enumerate(samplings) if rules.min_p > 0]
    if wanting:
        which = _which(wanting, scores)
        scores[which] = keep_min_p(scores[which], [samplings[index].min_p for index in wanting])
    wanting = [index for index, rules in enumerate(samplings) if rules.top_k > 0 or rules.top_p < 1]
    if wanting:
        which, narrow = _which(wanting, scores), [samplings[index] for index in wanting]
        scores[which] = keep_top(scores[which], [one.top_k for one in narrow], [one.top_p for one in narrow])
    return scores.softmax(-1)


def keep_min_p(scores: Tensor, shares: Sequence[float]) -> Tensor:
    """-inf for tokens less probable than `shares` (each > 0) times the most probable: (B, V)."""
    floor = scores.amax(-1, keepdim=True) + send(torch.tensor([[share] for share in shares]).log(), scores.device)
    return scores.masked_fill(scores < floor, -torch.inf)


def keep_top(scores: Tensor, counts: Sequence[int], shares: Sequence[float]) -> Tensor:
    """-inf for all but the `counts` best (0: all), and of these all but the fewest whose probability reaches `shares`.

    scores (B, V). Of tokens that are as good as each other those with the lower ids come first. One is always kept.
    """
    ranked, ids = scores.sort(dim=-1, descending=True, stable=True)
    vocabulary = scores.shape[-1]
    most = send(torch.tensor([[count or vocabulary] for count in counts]), scores.device)
    ranked = ranked.masked_fill(torch.arange(vocabulary, device=scores.device) >= most, -torch.inf)
    probabilities = ranked.softmax(-1, dtype=torch.float64)
    above = probabilities.cumsum(-1) - probabilities  # what the better ones have together
    enough = torch.tensor([[share if share < 1 else np.inf] for share in shares], dtype=torch.float64)
    ranked = ranked.masked_fill(above >= send(enough, scores.device), -torch.inf)
    return torch.empty_like(scores).scatter_(-1, ids, ranked)
