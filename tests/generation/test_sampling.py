"""What may be asked of a language model, and how the next token is chosen."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastserve import config
from fastserve.errors import ConfigError, WorkError
from fastserve.generation.choice import Choice, Wish, choose_each
from fastserve.generation.choosing import adjust, choose, distribution, keep_min_p, keep_top
from fastserve.generation.sampling import Row, Sampling

VOCABULARY = 12
finite = st.floats(-20, 20, width=32)
logit_rows = st.lists(st.lists(finite, min_size=VOCABULARY, max_size=VOCABULARY), min_size=1, max_size=4)
token_ids = st.lists(st.integers(0, VOCABULARY - 1), max_size=9)


def row(prompt: list[int] | None = None, written: list[int] | None = None, **rules: Any) -> Row:
    sampling = Sampling(**rules)
    return Row(sampling, prompt or [], written or [], sampling.draws())


def kept(scores: Tensor) -> Tensor:
    return scores > -torch.inf


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"temperature": -1}, "'temperature' = -1: input should be greater than or equal to 0"),
        ({"temperature": 1e-6}, "must be 0 or at least 0.001"),
        ({"temperature": math.nan}, "'temperature'"),
        ({"top_p": 0}, "smallest set of tokens"),
        ({"min_p": 1.5}, "'min_p' = 1.5"),
        ({"frequency_penalty": 3}, "less than or equal to 2"),
        ({"repetition_penalty": 0}, "'repetition_penalty'"),
        ({"logit_bias": {"3": 101}}, "'logit_bias"),
        ({"logit_bias": {"-3": 1}}, "token ids are not negative"),
        ({"seed": -1}, "'seed' = -1"),
        ({"stop": ["a", ""]}, "would end every text before its first character"),
        ({"n": 2, "temperature": 0}, "all of them would be the same text"),
        ({"max_tokens": 0}, "'max_tokens' = 0"),
        ({"topp": 0.5}, "did you mean 'top_p'"),
    ],
)
def test_wrong_words_are_named(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="sampling: ") as caught:
        config.check(Sampling, words, "sampling")
    assert message in str(caught.value)


def test_one_stop_string_or_several() -> None:
    assert Sampling(stop="end").stop == ("end",)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
    assert Sampling(stop=None).stop == ()
    assert config.check(Sampling, {"logit_bias": {"7": 2}}, "").logit_bias == {7: 2.0}


@settings(deadline=None, max_examples=50)
@given(logit_rows, st.lists(st.floats(0.01, 0.99), min_size=4, max_size=4))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: list[list[float]], shares: list[float]) -> None:
    scores = torch.tensor(logits)
    found = kept(keep_top(scores, [0] * len(logits), shares[: len(logits)]))
    for values, keep, share in zip(scores.double().softmax(-1), found, shares, strict=False):
        have = values[keep]
        assert have.min() >= values[~keep].max().item() if (~keep).any() else True
        assert have.sum() >= share - 1e-6
        assert have.sum() - have.min() < share + 1e-6  # without the least of them it would not be reached


@settings(deadline=None, max_examples=50)
@given(logit_rows, st.lists(st.integers(0, VOCABULARY + 3), min_size=4, max_size=4))
def test_top_k_keeps_the_k_best(logits: list[list[float]], counts: list[int]) -> None:
    scores = torch.tensor(logits)
    counts = counts[: len(logits)]
    result = keep_top(scores, counts, [1.0] * len(logits))
    for values, left, count in zip(scores, result, counts, strict=True):
        keep = kept(left)
        assert keep.sum() == min(count or VOCABULARY, VOCABULARY)
        assert torch.equal(values[keep], left[keep])
        assert values[keep].sort().values.tolist() == values.sort().values[-int(keep.sum()) :].tolist()


@settings(deadline=None, max_examples=50)
@given(logit_rows, st.floats(0.01, 1))
def test_min_p_keeps_what_is_probable_beside_the_best(logits: list[list[float]], share: float) -> None:
    scores = torch.tensor(logits)
    probabilities = scores.double().softmax(-1)
    ratio = probabilities / probabilities.amax(-1, keepdim=True)
    found = kept(keep_min_p(scores, [share] * len(logits)))
    assert found[ratio > share * (1 + 1e-4)].all()
    assert not found[ratio < share * (1 - 1e-4)].any()
    assert found.any(-1).all()


def test_each_filter_is_hugging_faces() -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    scores = torch.randn(5, 100, generator=torch.Generator().manual_seed(1)) * 3
    ids = torch.zeros(5, 1, dtype=torch.int64)
    for count, share, floor in ((7, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.1), (20, 0.6, 0.0)):
        expected = scores
        if floor:
            expected = processors.MinPLogitsWarper(floor)(ids, expected)
        if count:
            expected = processors.TopKLogitsWarper(count)(ids, expected)
        if share < 1:
            expected = processors.TopPLogitsWarper(share)(ids, expected)
        rules = Sampling(top_k=count, top_p=share, min_p=floor, temperature=1.0)
        torch.testing.assert_close(distribution(scores, [rules] * 5), expected.softmax(-1))


def test_the_repetition_penalty_is_hugging_faces() -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    scores = torch.randn(1, 50, generator=torch.Generator().manual_seed(2))
    expected = processors.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[3, 9, 9, 41]]), scores)
    found = adjust(scores, [row([3, 9], [9, 41], repetition_penalty=1.7)])
    torch.testing.assert_close(found, expected)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(finite, min_size=VOCABULARY, max_size=VOCABULARY),
    token_ids,
    token_ids,
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_penalties_as_openai_defines_them(
    logits: list[float], prompt: list[int], written: list[int], presence: float, frequency: float
) -> None:
    asked = row(prompt, written, presence_penalty=presence, frequency_penalty=frequency)
    found = adjust(torch.tensor([logits]), [asked])[0]
    counts = Counter(written)
    for token, logit in enumerate(logits):
        expected = logit - counts[token] * frequency - float(counts[token] > 0) * presence
        assert found[token].item() == pytest.approx(expected, abs=1e-4)


def test_the_logits_that_are_given_stay_as_they_are() -> None:
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(3))
    before = logits.clone()
    choose(logits, [row([1], [2], repetition_penalty=2, logit_bias={3: 5}, top_p=0.5, seed=1), row(temperature=0)])
    assert torch.equal(logits, before)


def test_bias_forces_and_forbids() -> None:
    logits = torch.zeros(1, VOCABULARY)
    assert choose(logits, [row(logit_bias={4: 100}, seed=0)]).ids.tolist() == [4]
    assert choose(logits, [row(logit_bias={0: -100}, temperature=0)]).ids.tolist() == [1]
    with pytest.raises(ConfigError, match="names the token 12, but the vocabulary has 12"):
        choose(logits, [row(logit_bias={12: 1})])


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(4))
    rows = [row(temperature=0.3, top_k=2, seed=1), row(temperature=0), row([1], [1], presence_penalty=2, seed=5)]
    chosen = choose(logits, rows)
    expected = logits.log_softmax(-1).gather(1, chosen.ids[:, None])[:, 0]
    torch.testing.assert_close(chosen.logprobs, expected)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    asked = row(temperature=0.7, top_k=3, seed=11)
    counts = Counter(choose(logits.expand(4000, 4), [asked] * 4000).ids.tolist())
    expected = distribution(logits, [asked.sampling])[0]
    assert counts[2] == 0
    for token in range(4):
        assert counts[token] / 4000 == pytest.approx(expected[token].item(), abs=0.03)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.sampled_from([{"temperature": 0}, {"top_p": 0.3}, {"top_k": 2}, {"min_p": 0.2}, {}]), max_size=4),
    st.integers(0, 4),
)
def test_a_seeded_row_does_not_know_its_neighbors(seed: int, neighbors: list[dict[str, Any]], place: int) -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(seed % 1000))
    place = min(place, len(neighbors))
    own = logits[4:]

    def write(beside: list[dict[str, Any]]) -> list[int]:
        rows = [row(**rules) for rules in beside]
        where = min(place, len(rows))
        rows.insert(where, row(seed=seed, temperature=1.3))
        batch = torch.cat([logits[:where], own, logits[where : len(rows) - 1]])
        return [int(choose(batch, rows).ids[where]) for _ in range(5)]

    assert write([]) == write(neighbors)


def test_copies_differ_and_come_again() -> None:
    sampling = Sampling(seed=3, n=2)
    first, second = (sampling.draws(copy).random(5).tolist() for copy in range(2))
    assert first != second
    assert sampling.draws(1).random(5).tolist() == second
    assert Sampling().draws().random() != Sampling().draws().random()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_numbers_end_the_work(bad: float, temperature: float) -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[1] = bad
    with pytest.raises(WorkError, match="for row 1 of 2"):
        choose(logits, [row(temperature=temperature)] * 2)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 4), -torch.inf)
    logits[0, 2] = 0.0
    last = Row(Sampling(), [], [], np.random.Generator(np.random.Philox(1)))
    assert {choose(logits, [last]).ids.item() for _ in range(50)} == {2}


def test_a_row_without_numbers_takes_no_draw_from_its_neighbors() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, VOCABULARY)
    logits[1, 4] = math.nan
    rules = [{"seed": 3, "temperature": 0.8}, {"seed": 4, "top_k": 3}, {"seed": 5, "top_p": 0.7}]
    rows = [row([1], [2], **one) for one in rules]
    for _ in range(3):
        first, bad, last = choose_each(logits, [Wish(one, top) for one, top in zip(rows, (2, 2, 0), strict=True)])
        assert "logits that are not numbers for row 1 of 3" in str(bad)
        assert isinstance(first, Choice)
        assert isinstance(last, Choice)
        assert len(first.top) == 2
    for place in (0, 2):
        alone = row([1], [2], **rules[place])
        for _ in range(3):
            choose(logits[place : place + 1], [alone])
        assert alone.draws.random() == rows[place].draws.random()


def test_what_cannot_be_wished_is_told_to_whom_it_concerns() -> None:
    wishes = [Wish(row(seed=1)), Wish(row(logit_bias={99: 1.0}))]
    fine, wrong = choose_each(torch.zeros(2, VOCABULARY), wishes)
    assert isinstance(fine, Choice)
    assert "logit_bias names the token 99" in str(wrong)
