"""The engine: for every kind of network, however steps are put together, what the plain loop writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from engines import KINDS, engine_of, greedy, ids, network_of, run
from torch import Tensor, nn
from writers import Reciter, small_decoder, small_tokenizer

from fastserve.errors import ConfigError, DataError, Overloaded
from fastserve.generation.engine import Engine
from fastserve.generation.orders import EngineOptions, Order
from fastserve.generation.reference import generate
from fastserve.generation.sampling import Sampling
from fastserve.models.causal import Attention

PROMPTS = [[5, 17, 200], [9], list(range(20, 70)), [5, 17, 201, 3], list(range(20, 60)), [7] * 17]
SAMPLED = Sampling(seed=7, temperature=1.2, top_p=0.9, repetition_penalty=1.1, max_tokens=16)


def orders_of(prompts: Sequence[Sequence[int]], sampling: Sampling, **others: Any) -> list[Order]:
    return [Order(str(place), prompt, sampling, **others) for place, prompt in enumerate(prompts)]


def expected(kind: str, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
    return [one.ids for one in generate(network_of(kind), prompts, sampling, eos=[])]


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_writes_what_the_plain_loop_writes(kind: str) -> None:
    found = run(engine_of(kind), orders_of(PROMPTS, greedy()))
    assert [ids(found[str(place), 0]) for place in range(len(PROMPTS))] == expected(kind, PROMPTS, greedy())


@pytest.mark.parametrize("kind", ["decoder", "mistral", "gemma2"])
@pytest.mark.parametrize("chunk", [16, 17, 64])
def test_prompts_in_chunks(kind: str, chunk: int) -> None:
    found = run(engine_of(kind, chunk=chunk), orders_of(PROMPTS, greedy()))
    assert [ids(found[str(place), 0]) for place in range(len(PROMPTS))] == expected(kind, PROMPTS, greedy())


@pytest.mark.parametrize("sampling", [greedy(), SAMPLED])
def test_alone_or_beside_others(sampling: Sampling) -> None:
    together = run(engine_of(), orders_of(PROMPTS, sampling))
    for place, prompt in enumerate(PROMPTS):
        alone = run(engine_of(), [Order("x", prompt, sampling)])["x", 0]
        assert ids(alone) == ids(together[str(place), 0])
        logprobs = [one.logprob for one in together[str(place), 0]]
        assert [one.logprob for one in alone] == pytest.approx(logprobs, abs=1e-4)


def test_sampled_texts_and_logprobs_are_those_of_the_plain_loop() -> None:
    found = run(engine_of(), orders_of(PROMPTS, SAMPLED, top_logprobs=3))
    for place, plain in enumerate(generate(network_of("decoder"), PROMPTS, SAMPLED, eos=[])):
        outputs = found[str(place), 0]
        assert ids(outputs) == plain.ids
        assert [one.logprob for one in outputs] == pytest.approx(plain.logprobs, abs=1e-4)
        for one in outputs:
            assert len(one.top) == 3
            assert one.top[0][1] >= one.logprob - 1e-4
            assert [logprob for _, logprob in one.top] == sorted((logprob for _, logprob in one.top), reverse=True)


@pytest.mark.parametrize("kind", ["decoder", "mistral"])
def test_what_was_read_before_is_not_read_again_and_changes_nothing(kind: str) -> None:
    engine = engine_of(kind)
    prompt = list(range(20, 70))
    first = run(engine, [Order("a", prompt, greedy())])["a", 0]
    again = run(engine, [Order("b", prompt, greedy())])["b", 0]
    longer = [*prompt, *ids(first)[:10], 9, 9]
    gone_on = run(engine, [Order("c", longer, greedy())])["c", 0]
    assert (first[0].cached, again[0].cached, gone_on[0].cached) == (0, 48, 48)
    assert ids(again) == ids(first)
    assert ids(gone_on) == expected(kind, [longer], greedy())[0]


def test_what_one_key_read_is_not_told_to_another() -> None:
    engine = engine_of()
    prompt = list(range(20, 70))
    outputs = [run(engine, [Order(key, prompt, greedy(), key=key)])[key, 0] for key in ("a", "b")]
    assert [one[0].cached for one in outputs] == [0, 0]


def test_copies_read_the_prompt_once_and_are_those_of_the_plain_loop() -> None:
    sampling = Sampling(seed=3, temperature=1.0, max_tokens=8, n=4)
    engine = engine_of()
    found = run(engine, [Order("a", PROMPTS[2], sampling)])
    plain = generate(network_of("decoder"), [PROMPTS[2]], sampling, eos=[])
    assert [ids(found["a", copy]) for copy in range(4)] == [one.ids for one in plain]
    assert engine.stats().prompt_tokens_total < 2 * len(PROMPTS[2])


@pytest.mark.parametrize("policy", ["fcfs", "priority", "sj-mlfq", "hrrn", "boost"])
@pytest.mark.parametrize("cache_tokens", ["auto", 16 * 16])
def test_preempted_swapped_or_dropped_a_text_is_the_same(policy: str, cache_tokens: Any) -> None:
    engine = engine_of(policy=policy, slots=2, rows=3, cache_tokens=cache_tokens, chunk=32)
    late = orders_of(PROMPTS, greedy(), priority=-1)

    def more(engine: Engine, step: int) -> None:
        if step % 3 == 2 and late:
            engine.add(late.pop())

    first = [Order(f"first {place}", prompt, greedy(), priority=place) for place, prompt in enumerate(PROMPTS)]
    found = run(engine, first, each_step=more)
    for place, plain in enumerate(expected("decoder", PROMPTS, greedy())):
        assert ids(found[f"first {place}", 0]) == plain
        assert ids(found[str(place), 0]) == plain
    assert engine.stats().finished_total == 2 * len(PROMPTS)


def test_texts_end_at_the_end_token_the_length_or_the_context() -> None:
    engine = Engine(
        Reciter({3: 4, 4: 5, 5: 1, 6: 6}, 8), None, EngineOptions(precision="float32", profile_seconds=0), eos=[1]
    )
    found = run(engine, orders_of([[3], [6], [6] * 35], greedy(9)))
    assert [(ids(outputs), outputs[-1].finish_reason) for outputs in found.values()] == [
        ([4, 5, 1], "stop"),
        ([6] * 9, "length"),
        ([6] * 5, "length"),
    ]


def test_text_and_stop_strings() -> None:
    tokenizer = small_tokenizer()
    network = small_decoder(tokenizer.vocabulary_size)
    plain = generate(network, [[5, 6]], greedy(30), eos=[], tokenizer=tokenizer)[0]
    found = run(Engine(network, tokenizer), [Order("a", [5, 6], greedy(30))])["a", 0]
    assert "".join(one.text for one in found) == plain.text
    stop = plain.text[8:11]
    stopped = run(Engine(network, tokenizer), [Order("a", [5, 6], Sampling(temperature=0, stop=stop))])["a", 0]
    assert "".join(one.text for one in stopped) == plain.text[: plain.text.index(stop)]
    assert stopped[-1].finish_reason == "stop"


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_cancelled_order_leaves_nothing(copies: int, after: int) -> None:
    engine = engine_of(slots=2, rows=2, chunk=16, prefix_cache=False)
    free = engine.scheduler.cache.free_blocks
    sampling = Sampling(seed=1, n=copies, max_tokens=30)
    for name in ("a", "b"):
        engine.add(Order(name, PROMPTS[2], sampling))
    for _ in range(after):
        engine.step()
    engine.cancel("a")
    assert all(output.id == "b" for output in engine.step())
    engine.cancel("b")
    engine.cancel("b")
    assert not engine.has_work
    assert engine.step() == []
    assert engine.scheduler.cache.free_blocks == free
    assert engine.stats().waiting_tokens == 0


class Poisoned(nn.Module):
    """A network in which one token makes all numbers none."""

    def __init__(self, inner: nn.Module, poison: int) -> None:
        super().__init__()
        self.inner, self.poison = inner, poison
        self.layers, self.longest = inner.layers, inner.longest

    @property
    def head(self) -> nn.Module:
        return self.inner.head

    def hidden(self, ids: Tensor, attention: Attention) -> Tensor:
        return self.inner.hidden(ids, _Spoilt(attention, ids == self.poison))


class _Spoilt:
    def __init__(self, attention: Attention, bad: Tensor) -> None:
        self.attention, self.bad = attention, bad
        self.positions = attention.positions

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **others: Any) -> Tensor:
        key, value = (part.masked_fill(self.bad[:, None, None], math.nan) for part in (key, value))
        return self.attention(layer, query, key, value, **others)


def test_a_text_that_fails_harms_nobody() -> None:
    engine = Engine(Poisoned(network_of("decoder"), 299), None, EngineOptions(precision="float32", profile_seconds=0))
    prompts = [PROMPTS[0], [4, 299, 6], PROMPTS[3]]
    for _ in range(2):
        found = run(engine, orders_of(prompts, greedy()))
        (failed,) = found["1", 0]
        assert "logits that are not numbers" in str(failed.error)
        assert failed.ends
        plain = expected("decoder", prompts, greedy())
        assert ids(found["0", 0]) == plain[0]
        assert ids(found["2", 0]) == plain[2]
    again = run(engine, orders_of(PROMPTS, greedy()))
    assert [ids(again[str(place), 0]) for place in range(len(PROMPTS))] == expected("decoder", PROMPTS, greedy())
    assert engine.stats().errors_total == 2


def test_what_a_failed_text_read_is_not_taken_over() -> None:
    engine = Engine(Poisoned(network_of("decoder"), 299), None, EngineOptions(precision="float32", profile_seconds=0))
    prompt = list(range(20, 60))
    run(engine, [Order("a", [*prompt, 299], greedy())])
    found = run(engine, [Order("b", prompt, greedy())])["b", 0]
    assert found[0].cached == 0
    assert ids(found) == expected("decoder", [prompt], greedy())[0]


def test_a_step_that_fails_ends_its_texts_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    engine.add(Order("a", [1, 2], greedy()))
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "read", lambda parts: 1 / 0)
        (failed,) = engine.step()
    assert failed.error == "division by zero"
    assert not engine.has_work
    assert len(run(engine, [Order("a", [1, 2], greedy())])["a", 0]) == 20


def test_what_is_too_much_is_turned_away_and_nothing_of_it_stays() -> None:
    engine = engine_of(slots=1, rows=1, max_waiting_tokens=200)
    sampling = Sampling(n=2, max_tokens=20)
    with pytest.raises(Overloaded, match="too much waits") as raised:
        fill(engine, Order("", PROMPTS[2], sampling))
    assert raised.value.retry_after >= 1
    found = run(engine, [])
    assert 0 < len(found) < 20
    assert {copy for _, copy in found} == {0, 1}
    assert len(found) == 2 * len({name for name, _ in found})


def fill(engine: Engine, order: Order) -> None:
    for number in range(100):
        engine.add(replace(order, id=str(number)))


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (Order("a", [], greedy()), DataError, "has no tokens"),
        (Order("a", [1] * 96, greedy()), DataError, "reads at most 96"),
        (Order("a", [300], greedy()), ConfigError, "prompt has the token 300"),
        (Order("a", [1], Sampling(logit_bias={301: 1.0})), ConfigError, "logit_bias has the token 301"),
        (Order("a", [1], greedy(), top_logprobs=21), ConfigError, "top_logprobs = 21"),
        (Order("a", [1], Sampling(stop="x")), ConfigError, "need a tokenizer"),
    ],
)
def test_orders_that_cannot_be_kept(order: Order, error: type[Exception], message: str) -> None:
    engine = engine_of()
    with pytest.raises(error, match=message):
        engine.add(order)
    assert not engine.has_work


def test_two_orders_of_one_name() -> None:
    engine = engine_of()
    engine.add(Order("a", [1], greedy()))
    with pytest.raises(ConfigError, match="is being written already"):
        engine.add(Order("a", [1], greedy()))


def test_the_cache_stays_within_what_is_used() -> None:
    engine = engine_of(rows=64)
    run(engine, orders_of([[1, 2, 3]] * 2, greedy()))
    cache = engine.runner.cache
    assert cache.bytes <= 2 * 64 * 2 * torch.finfo(torch.float32).bits // 8 * 2 * 8 * 2 * 2


def test_levels_are_counted_of_a_policy_that_has_them() -> None:
    engine = engine_of(policy="sj-mlfq")
    for order in orders_of(PROMPTS, greedy()):
        engine.add(order)
    engine.step()
    assert sum(engine.stats().levels) == len(PROMPTS)
    assert engine_of().stats().levels == ()
