"""How probable given texts are: the same numbers as reading each alone, whatever is packed beside it."""

from __future__ import annotations

import pytest
import torch
from writers import small_decoder

from fastserve.errors import DataError
from fastserve.generation import likelihood
from fastserve.generation.likelihood import likelihoods
from fastserve.generation.reference import generate
from fastserve.generation.sampling import Sampling
from fastserve.models.ragged import RaggedTensor

PAIRS = [([5, 6, 7], [8, 9]), ([1], [2]), (list(range(30)), [40, 41, 42]), ([5, 6, 7], [8])]


def plain(network: torch.nn.Module, prompt: list[int], rest: list[int]) -> float:
    ids = torch.tensor([*prompt, *rest])
    with torch.no_grad():
        logs = network({"tokens": RaggedTensor(ids, torch.tensor([0, len(ids)]))}).log_softmax(-1)
    return sum(logs[len(prompt) - 1 + place, token].item() for place, token in enumerate(rest))


def test_likelihoods_are_those_of_each_pair_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_decoder()
    expected = [plain(network, *pair) for pair in PAIRS]
    assert [one.log for one in likelihoods(network, PAIRS)] == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr(likelihood, "MOST_TOKENS", 6)
    monkeypatch.setattr(likelihood, "CHUNK", 2)
    assert [one.log for one in likelihoods(network, PAIRS)] == pytest.approx(expected, abs=1e-3)


def test_what_greedy_decoding_writes_is_greedy_and_anything_else_is_not() -> None:
    network = small_decoder()
    (written,) = generate(network, [[5, 6, 7]], Sampling(temperature=0, max_tokens=5), eos=[])
    other = [*written.ids[:-1], (written.ids[-1] + 1) % 300]
    found = likelihoods(network, [([5, 6, 7], written.ids), ([5, 6, 7], other)])
    assert [one.greedy for one in found] == [True, False]
    assert found[0].log == pytest.approx(sum(written.logprobs), abs=1e-3)


def test_a_long_prompt_loses_its_beginning() -> None:
    network = small_decoder(context=16)
    long = list(range(100, 140))
    (found,) = likelihoods(network, [(long, [3, 4])])
    assert found.log == pytest.approx(plain(network, long[-14:], [3, 4]), abs=1e-3)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], [1]), "prompt of pair 1 has no tokens"),
        (([1], []), "continuation of pair 1 has no tokens"),
        (([1], [2] * 16), "has 16 tokens, but the network reads at most 16"),
    ],
)
def test_pairs_that_cannot_be_judged_are_refused(pair: tuple[list[int], list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        likelihoods(small_decoder(context=16), [([1], [2]), pair])


def test_no_pairs() -> None:
    assert likelihoods(small_decoder(), []) == []
