"""Guessing ahead: fewer steps, the same text."""

from __future__ import annotations

import pytest
from engines import engine_of, greedy, ids, network_of, run
from writers import Reciter

from fastserve.generation.engine import Engine
from fastserve.generation.orders import EngineOptions, Order
from fastserve.generation.reference import generate
from fastserve.generation.sampling import Sampling
from fastserve.generation.speculation import HOPE, Lookup

PROMPTS = [[5, 17, 200], [7] * 17, list(range(20, 40)) * 2, [5, 17, 201, 3]]


def test_what_followed_before_is_guessed() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert lookup.guess(2) == [4, 5]
    assert lookup.guess(9) == [4, 5, 6, 1, 2, 3, 4, 5, 6]
    assert lookup.guess(0) == []
    lookup.extend([9])
    assert lookup.guess(4) == []
    assert Lookup([1]).guess(4) == []
    for _ in range(20):
        lookup.judge(4, 0)
    assert lookup.share < 0.05
    for _ in range(1000):
        lookup.judge(0, 0)
    assert lookup.share == HOPE


@pytest.mark.parametrize("kind", ["decoder", "mistral", "gemma2", "gpt2"])
@pytest.mark.parametrize(
    "sampling",
    [greedy(40), Sampling(seed=3, temperature=0.7, top_k=4, n=2, repetition_penalty=1.05, max_tokens=30)],
    ids=["greedy", "sampled"],
)
def test_texts_are_the_same(kind: str, sampling: Sampling) -> None:
    plain = generate(network_of(kind), PROMPTS, sampling, eos=[])
    orders = [Order(str(place), prompt, sampling) for place, prompt in enumerate(PROMPTS)]
    engine = engine_of(kind, speculation=3)
    found = run(engine, orders)
    assert [ids(found[str(one.prompt), one.copy]) for one in plain] == [one.ids for one in plain]
    for one in plain:
        logprobs = [output.logprob for output in found[str(one.prompt), one.copy]]
        assert logprobs == pytest.approx(one.logprobs, abs=1e-4)
    stats = engine.stats()
    assert stats.generation_tokens_total == sum(len(one.ids) for one in plain)
    assert stats.speculated_tokens_total >= stats.accepted_tokens_total


def test_what_goes_round_in_circles_takes_fewer_steps() -> None:
    network = Reciter({3: 4, 4: 5, 5: 3}, 8)
    steps = []
    for guesses in (0, 3):
        engine = Engine(network, None, EngineOptions(precision="float32", profile_seconds=0, speculation=guesses))
        assert ids(run(engine, [Order("a", [3], greedy(30))])["a", 0]) == [4, 5, 3] * 10
        steps.append(engine.stats().steps_total)
    assert steps[0] == 30
    assert steps[1] < 20
    assert engine.stats().accepted_tokens_total > 10


def test_preempted_dropped_and_guessed_ahead() -> None:
    engine = engine_of(policy="boost", slots=2, rows=3, cache_tokens=16 * 12, chunk=32, speculation=3)
    orders = [Order(f"{name}{place}", prompt, greedy(40)) for name in "ab" for place, prompt in enumerate(PROMPTS)]
    found = run(engine, orders)
    for place, plain in enumerate(generate(network_of("decoder"), PROMPTS, greedy(40), eos=[])):
        assert ids(found[f"a{place}", 0]) == ids(found[f"b{place}", 0]) == plain.ids


def test_auto_guesses_where_the_machine_gains_by_it() -> None:
    engine = engine_of(speculation="auto")
    found = run(engine, [Order("a", [7] * 17, greedy(40))])["a", 0]
    assert ids(found) == generate(network_of("decoder"), [[7] * 17], greedy(40), eos=[])[0].ids
