"""How probable a given text is after a prompt, where a model is judged by texts that others wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from fastserve.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from fastserve.models.causal import CausalNetwork

MOST_TOKENS = 8192
"""Tokens that are read at once."""
CHUNK = 512
"""Tokens whose logits exist at a time."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt, and of what follows it."""


class Likelihood(NamedTuple):
    """log: natural logarithm of the probability of all tokens after the prompt; greedy: whether each of them is the
    most probable one, so that greedy decoding writes exactly this."""

    log: float
    greedy: bool


def likelihoods(network: CausalNetwork, pairs: Sequence[Pair]) -> list[Likelihood]:
    """One for each pair, in order.

    Of a prompt that does not fit the network's context together with what follows, the beginning is left out. DataError
    for an empty prompt or continuation, or a continuation that leaves no room.
    """
    import torch

    fitted = [_fit(pair, place, network.longest) for place, pair in enumerate(pairs)]
    found: dict[int, Likelihood] = {}
    with torch.inference_mode():
        for places in _packs([len(prompt) + len(rest) for prompt, rest in fitted]):
            together = _read(network, [fitted[place] for place in places])
            found.update(zip(places, together, strict=True))
    return [found[place] for place in range(len(pairs))]


def _fit(pair: Pair, place: int, longest: int) -> Pair:
    prompt, rest = pair
    for name, ids in (("prompt", prompt), ("continuation", rest)):
        if not len(ids):
            raise DataError(f"the {name} of pair {place} has no tokens; expected at least one")
    room = longest - len(rest)
    if room < 1:
        raise DataError(
            f"the continuation of pair {place} has {len(rest):,} tokens, but the network reads at most {longest:,} "
            "together with a prompt: shorten it"
        )
    return prompt[-room:], rest


def _packs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Every place once, those of like length together, at most MOST_TOKENS in each pack."""
    pack: list[int] = []
    total = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if pack and total + lengths[place] > MOST_TOKENS:
            yield pack
            pack, total = [], 0
        pack.append(place)
        total += lengths[place]
    if pack:
        yield pack


def _read(network: CausalNetwork, pairs: Sequence[Pair]) -> list[Likelihood]:
    import torch

    from fastserve.models.attention import PackedCausal

    device = next(network.head.parameters()).device
    ids = torch.tensor([token for prompt, rest in pairs for token in (*prompt, *rest)], device=device)
    ends = list(accumulate(len(prompt) + len(rest) for prompt, rest in pairs))
    told = [place for (_, rest), end in zip(pairs, ends, strict=True) for place in range(end - len(rest), end)]
    targets = ids[told]
    hidden = network.hidden(ids, PackedCausal(torch.tensor([0, *ends], device=device)))
    before = hidden[torch.tensor(told, device=device) - 1]
    parts = [
        _judge(network, vectors, follows)
        for vectors, follows in zip(torch.split(before, CHUNK), torch.split(targets, CHUNK), strict=True)
    ]
    counts = [len(rest) for _, rest in pairs]
    logs = torch.split(torch.cat([logs for logs, _ in parts]).double().cpu(), counts)
    best = torch.split(torch.cat([best for _, best in parts]).cpu(), counts)
    return [Likelihood(float(log.sum()), bool(top.all())) for log, top in zip(logs, best, strict=True)]


def _judge(network: CausalNetwork, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """hidden (n, dim), targets int64 (n,): log-probabilities, and whether each is the most probable, (n,) each."""
    logits: Tensor = network.head(hidden).float()
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], logits.argmax(-1) == targets
