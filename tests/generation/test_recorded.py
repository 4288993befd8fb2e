"""Steps that are replayed give what those that are not give, whatever was recorded before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engines import engine_of, greedy, ids, network_of, run
from paged import NO_CUDA, OLD_TORCH, dictated, eagerly, paged_cache, use_pages
from torch import Tensor
from writers import small_decoder

from fastserve.generation.fast_decoder import fast_form
from fastserve.generation.key_values import Chunk
from fastserve.generation.orders import Order
from fastserve.generation.paged_cache import PagedCache
from fastserve.generation.recorded import BUCKETS, Compute, CudaGraphs, Recorded
from fastserve.generation.reference import generate
from fastserve.generation.runner import Part, Runner
from fastserve.generation.sampling import Sampling

SAMPLED = Sampling(seed=7, temperature=1.2, top_p=0.9, repetition_penalty=1.1, max_tokens=16)


class Counter:
    """A `Record` that counts, and refuses to compute with other tensors than it was given: as a graph would.

    What is computed is put where the first result was.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Compute) -> Compute:
        self.recorded += 1
        result = compute().clone()

        def replay() -> Tensor:
            self.replayed += 1
            return result.copy_(compute())

        return replay


def recorded_of(count: Counter, *, rows: int = 20, pages: int = 40, page: int = 4) -> tuple[Any, PagedCache, Recorded]:
    decoder: Any = fast_form(network_of("decoder"), "float32")  # type: ignore[arg-type]
    cache = paged_cache(decoder.layers, rows, decoder.longest, pages=pages, page=page)
    return decoder, cache, Recorded(decoder, cache, count)


@torch.inference_mode()
def test_replayed_steps_are_those_that_are_computed_afresh() -> None:
    torch.manual_seed(0)
    count = Counter()
    decoder, cache, recorded = recorded_of(count)
    *_, plain = recorded_of(Counter())
    starts = [1 + 3 * row % 17 for row in range(20)]
    for one in (cache, plain.cache):
        for row, start in enumerate(starts):
            prompt = torch.arange(start) + row
            decoder.hidden(prompt, one.attention([], [Chunk(row, 0, start)]))
            one.keep(row, start)
    for rows in ([0], [3, 5, 4], list(range(9)), [0], list(range(20)), [19, 2, 7]):
        chunks = [Chunk(row, starts[row], 1) for row in rows]
        told = torch.randint(0, 300, (len(rows),))
        found = recorded(told.tolist(), chunks)
        expected = decoder.head(decoder.hidden(told, plain.cache.attention(chunks, [])))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        for row in rows:
            starts[row] += 1
            for one in (cache, plain.cache):
                one.keep(row, starts[row])
    assert recorded.sizes == [1, 4, 16, 24]
    assert (count.recorded, count.replayed) == (4, 6)


@torch.inference_mode()
def test_what_fills_up_a_step_touches_no_text() -> None:
    decoder, cache, recorded = recorded_of(Counter())
    decoder.hidden(torch.arange(9), cache.attention([], [Chunk(0, 0, 9)]))
    cache.keep(0, 9)
    owned = cache.table.of(0).tolist()
    before = [part[owned].clone() for part in cache._parts()]
    recorded.warm(16)
    assert recorded.sizes == [1, 2, 4, 8, 16]
    assert all(torch.equal(part[owned], old) for part, old in zip(cache._parts(), before, strict=True))
    assert 0 not in owned


@torch.inference_mode()
def test_a_pool_that_has_moved_is_recorded_anew() -> None:
    count = Counter()
    _, cache, recorded = recorded_of(count, pages=2)
    recorded([5], [Chunk(0, 0, 1)])
    cache.keep(0, 1)
    recorded([6], [Chunk(0, 1, 1)])
    assert count.recorded == 1
    cache.reserve(1, 90)
    assert cache.moved == 1
    recorded([7], [Chunk(0, 2, 1)])
    recorded([8], [Chunk(1, 0, 1)])
    assert count.recorded == 2


@pytest.mark.parametrize("kind", ["decoder", "decoder-qwen3", "qwen2", "mistral"])
@pytest.mark.parametrize("sampling", [greedy(), SAMPLED], ids=["greedy", "sampled"])
def test_engines_write_what_the_plain_loop_writes(
    kind: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Counter()
    use_pages(monkeypatch, record=count)
    prompts = [[5, 17, 200], [9], list(range(20, 70)), [5, 17, 201, 3], [7] * 17]
    engine = engine_of(kind, chunk=32)
    engine.prepare()
    recorded = engine.runner.recorded
    assert recorded is not None
    assert recorded.sizes == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    before = count.recorded, count.replayed
    found = run(engine, [Order(str(place), prompt, sampling) for place, prompt in enumerate(prompts)])
    expected = generate(network_of(kind), prompts, sampling, eos=[])  # type: ignore[arg-type]
    assert [ids(found[str(one.prompt), 0]) for one in expected] == [one.ids for one in expected]
    assert count.recorded == before[0]
    assert count.replayed > before[1] + 10


def test_only_steps_of_single_tokens_without_adapters_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Counter()
    use_pages(monkeypatch, record=count)
    runner = Runner(fast_form(network_of("decoder"), "float32"), 4)  # type: ignore[arg-type]
    assert runner.read([Part(0, 0, [1, 2, 3], 0), Part(1, 0, [4], 1)]).shape == (1, 300)
    assert count.replayed == 0
    assert runner.read([Part(0, 3, [4], 1), Part(1, 1, [5], 0)]).shape == (1, 300)
    assert count.replayed == 1
    runner.read([Part(0, 4, [4], 1, adapter="a"), Part(1, 2, [5], 1)])
    assert count.replayed == 1


def test_more_rows_than_the_largest_size_are_computed_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Counter()
    use_pages(monkeypatch, record=count)
    rows = BUCKETS[-1] + 1
    runner = Runner(fast_form(network_of("decoder"), "float32"), rows)  # type: ignore[arg-type]
    assert runner.read([Part(row, 0, [1], 1) for row in range(rows)]).shape == (rows, 300)
    assert runner.read([Part(row, 1, [1], 1) for row in range(rows - 1)]).shape == (rows - 1, 300)
    assert count.replayed == 1


def test_a_network_of_another_form_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    use_pages(monkeypatch, record=eagerly)
    assert Runner(network_of("gpt2"), 2).recorded is None  # type: ignore[arg-type]


@NO_CUDA
def test_graphs_replay_what_was_recorded() -> None:
    graphs = CudaGraphs(torch.device("cuda"))
    inputs = torch.zeros(3, device="cuda")
    weights = torch.eye(3, device="cuda")
    replays: list[Callable[[], Tensor]] = [graphs(lambda: inputs @ weights), graphs(lambda: inputs * 2 + 1)]
    for number in (1.0, 2.0):
        inputs.fill_(number)
        assert replays[0]().tolist() == [number] * 3
        assert replays[1]().tolist() == [2 * number + 1] * 3


@NO_CUDA
@OLD_TORCH
def test_graphs_give_the_logits_of_the_same_steps_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = fast_form(small_decoder(context=600).cuda(), "bfloat16")
    runner = Runner(network, 4)
    found = dictated(runner)
    assert runner.recorded is not None
    assert runner.recorded.sizes == [2, 4]
    monkeypatch.setattr("fastserve.generation.memory.recorder", lambda network, place: None)
    afresh = dictated(Runner(network, 4))
    torch.testing.assert_close(found, afresh, atol=0.05 * float(afresh[0].abs().max()), rtol=0)
