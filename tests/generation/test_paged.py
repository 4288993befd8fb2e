"""Pages: engines write what the plain loop writes, attention is the formula, and no page is lost or held twice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import engine_of, greedy, ids, network_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from paged import NO_CUDA, OLD_TORCH, PAGE, contents, dictated, eagerly, paged_cache, same, use_pages
from torch import Tensor
from writers import small_decoder

from fastserve.generation import paged_attention
from fastserve.generation.cache import RowCache
from fastserve.generation.engine import Engine
from fastserve.generation.fast_decoder import fast_form
from fastserve.generation.job import Job
from fastserve.generation.key_values import Chunk, HostRow
from fastserve.generation.limits import Limits
from fastserve.generation.memory import memory_of
from fastserve.generation.orders import EngineOptions, Order
from fastserve.generation.paged_attention import by_formula, fits_pages, kernel_for
from fastserve.generation.paged_cache import PagedCache
from fastserve.generation.pages import PageTable
from fastserve.generation.reference import generate
from fastserve.generation.runner import Part, Runner
from fastserve.generation.sampling import Sampling
from fastserve.generation.slots import SlotCache
from fastserve.generation.step import Place, SwapIn, SwapOut
from fastserve.models.attention import CachedCausal

LAYERS, HEADS, KEYS, SIZE, LONGEST = 2, 4, 2, 8, 60
PROMPTS = [[5, 17, 200], [9], list(range(20, 70)), [5, 17, 201, 3], list(range(20, 60)), [7] * 17]
KINDS = ["decoder", "decoder-qwen3", "gpt2", "llama", "qwen2", "mistral"]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    use_pages(monkeypatch, record=eagerly)
    return monkeypatch


def orders_of(prompts: Sequence[Sequence[int]], sampling: Sampling, **others: Any) -> list[Order]:
    return [Order(str(place), prompt, sampling, **others) for place, prompt in enumerate(prompts)]


def expected(kind: str, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
    return [one.ids for one in generate(network_of(kind), prompts, sampling, eos=[])]


def cache_of(engine: Engine) -> PagedCache:
    cache = engine.runner.cache
    assert isinstance(cache, PagedCache)
    return cache


def write(engine: Engine, orders: Sequence[Order], **others: Any) -> dict[tuple[str, int], list[Any]]:
    """To their end; after every step all pages must be accounted for."""
    each = others.pop("each_step", lambda engine, step: None)

    def check(engine: Engine, step: int) -> None:
        cache_of(engine).table.check()
        each(engine, step)

    return run(engine, orders, each_step=check)


# Engines


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_writes_what_the_plain_loop_writes(kind: str, pages: pytest.MonkeyPatch) -> None:
    found = write(engine_of(kind), orders_of(PROMPTS, greedy()))
    assert [ids(found[str(place), 0]) for place in range(len(PROMPTS))] == expected(kind, PROMPTS, greedy())


@pytest.mark.parametrize("kind", ["decoder", "mistral"])
@pytest.mark.parametrize("chunk", [16, 17, 64])
def test_prompts_in_chunks(kind: str, chunk: int, pages: pytest.MonkeyPatch) -> None:
    found = write(engine_of(kind, chunk=chunk), orders_of(PROMPTS, greedy()))
    assert [ids(found[str(place), 0]) for place in range(len(PROMPTS))] == expected(kind, PROMPTS, greedy())


@pytest.mark.parametrize("policy", ["fcfs", "priority", "sj-mlfq", "hrrn", "boost"])
@pytest.mark.parametrize("cache_tokens", ["auto", 16 * 16])
def test_preempted_swapped_or_dropped_a_text_is_the_same(
    policy: str, cache_tokens: Any, pages: pytest.MonkeyPatch
) -> None:
    engine = engine_of(policy=policy, slots=2, rows=3, cache_tokens=cache_tokens, chunk=32)
    late = orders_of(PROMPTS, greedy(), priority=-1)

    def more(engine: Engine, step: int) -> None:
        if step % 3 == 2 and late:
            engine.add(late.pop())

    first = [Order(f"first {place}", prompt, greedy(), priority=place) for place, prompt in enumerate(PROMPTS)]
    found = write(engine, first, each_step=more)
    for place, plain in enumerate(expected("decoder", PROMPTS, greedy())):
        assert ids(found[f"first {place}", 0]) == plain
        assert ids(found[str(place), 0]) == plain


def test_what_was_read_before_is_copied_to_pages_of_its_own(pages: pytest.MonkeyPatch) -> None:
    engine = engine_of("mistral")
    prompt = list(range(20, 70))
    first = write(engine, [Order("a", prompt, greedy())])["a", 0]
    again = write(engine, [Order("b", prompt, greedy())])["b", 0]
    longer = [*prompt, *ids(first)[:10], 9, 9]
    gone_on = write(engine, [Order("c", longer, greedy())])["c", 0]
    assert (first[0].cached, again[0].cached, gone_on[0].cached) == (0, 48, 48)
    assert ids(again) == ids(first)
    assert ids(gone_on) == expected("mistral", [longer], greedy())[0]


def test_copies_are_those_of_the_plain_loop(pages: pytest.MonkeyPatch) -> None:
    sampling = Sampling(seed=3, temperature=1.0, max_tokens=8, n=4)
    found = write(engine_of(), [Order("a", PROMPTS[2], sampling)])
    plain = generate(network_of("decoder"), [PROMPTS[2]], sampling, eos=[])
    assert [ids(found["a", copy]) for copy in range(4)] == [one.ids for one in plain]


def test_guessed_tokens_that_are_wrong_give_their_pages_back(pages: pytest.MonkeyPatch) -> None:
    prompts = [[7] * 17, list(range(20, 40)) * 2]
    sampling = Sampling(seed=3, temperature=0.7, top_k=4, n=2, max_tokens=30)
    engine = engine_of(speculation=3)
    found = write(engine, orders_of(prompts, sampling))
    plain = generate(network_of("decoder"), prompts, sampling, eos=[])
    assert [ids(found[str(one.prompt), one.copy]) for one in plain] == [one.ids for one in plain]
    assert engine.stats().speculated_tokens_total > engine.stats().accepted_tokens_total


@pytest.mark.parametrize("kind", ["decoder", "gpt2"])
def test_adapters_side_by_side(kind: str, pages: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from test_adapters import alone, make

    prompts = [[5, 17, 200], list(range(20, 50)), [9]]
    folders = {name: make(kind, tmp_path / name, rank=2, seed=seed) for seed, name in enumerate(("a", "b"))}
    options = EngineOptions(precision="float32", profile_seconds=0)
    engine = Engine(network_of(kind), None, options, adapters=folders)
    names = [None, "a", "b"]
    orders = [
        Order(f"{name} {place}", prompt, greedy(12), adapter=name)
        for place, prompt in enumerate(prompts)
        for name in names
    ]
    found = write(engine, orders)
    for name in names:
        texts = [ids(found[f"{name} {place}", 0]) for place in range(len(prompts))]
        assert texts == alone(kind, folders.get(name or ""))


def test_the_pool_stays_within_what_the_cache_may_take(pages: pytest.MonkeyPatch) -> None:
    """Prompts that are remembered, in more slots than there is memory for, give their pages to whoever comes."""
    tokens, rows = 12 * 16, 8
    engine = engine_of(slots=2, rows=rows, cache_tokens=tokens, policy="fcfs")
    prompts = [[number, *range(20, 70)] for number in range(100, 124)]
    found = write(engine, orders_of(prompts, greedy(8)))
    assert [ids(found[str(place), 0]) for place in range(len(prompts))] == expected("decoder", prompts, greedy(8))
    cache = cache_of(engine)
    assert cache.moved == 0
    assert cache.table.pages <= tokens // PAGE + rows + cache.row + 1


def test_an_engine_that_measures_itself_grows_its_pool(pages: pytest.MonkeyPatch) -> None:
    engine = engine_of(profile_seconds=0.2)
    assert engine.scheduler.outlook.cost.origin == "measured at start"
    found = write(engine, orders_of(PROMPTS[:2], greedy()))
    assert [ids(found[str(place), 0]) for place in range(2)] == expected("decoder", PROMPTS[:2], greedy())


# What is chosen for which network


@pytest.mark.parametrize("kind", ["decoder", "gemma2"])
def test_pages_are_for_graphics_processors(kind: str) -> None:
    network: Any = network_of(kind)
    assert kernel_for(network, torch.device("cpu")) is None
    assert isinstance(memory_of(network, 2, torch.device("cpu")).cache, SlotCache)


@pytest.mark.parametrize(
    ("kind", "dtype", "fits"),
    [
        ("decoder", torch.bfloat16, True),
        ("decoder", torch.float32, False),
        ("qwen2", torch.bfloat16, True),
        ("gemma2", torch.bfloat16, False),
    ],
)
def test_the_kernel_takes_16_bits_and_no_cap(kind: str, dtype: torch.dtype, fits: bool) -> None:
    network: Any = copy.deepcopy(network_of(kind)).to(dtype)
    assert fits_pages(network, torch.device("cpu")) == fits


def test_a_cap_is_refused_by_name() -> None:
    cache = paged_cache(1, 1, 16, pages=2)
    _, key, value = tensors(1)
    with pytest.raises(ValueError, match=r"layer 0 caps its scores at 2\.0"):
        cache.attention([Chunk(0, 0, 1)], [])(0, key, key, value, scale=1.0, cap=2.0)


# Attention


def tensors(count: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(count, HEADS, SIZE), torch.randn(count, KEYS, SIZE), torch.randn(count, KEYS, SIZE)


class Text:
    """In a slot, and in a plain cache of its own."""

    def __init__(self) -> None:
        self.length, self.plain = 0, CachedCausal(LAYERS, 1)


def compare(cache: PagedCache, texts: dict[int, Text], counts: dict[int, int], window: int | None) -> None:
    """One step in which the texts in these slots go on by so many tokens."""
    order = sorted(counts, key=lambda slot: counts[slot] > 1)
    chunks = [Chunk(slot, texts[slot].length, counts[slot]) for slot in order]
    singles = sum(count == 1 for count in counts.values())
    step = cache.attention(chunks[:singles], chunks[singles:])
    plain = [texts[slot].plain.extend([counts[slot]]) for slot in order]
    assert torch.equal(step.positions, torch.cat([one.positions for one in plain]))
    for layer in range(LAYERS):
        query, key, value = tensors(sum(counts.values()))
        found = step(layer, query, key, value, scale=0.3, window=window)
        start = 0
        for slot, one in zip(order, plain, strict=True):
            part = slice(start, start := start + counts[slot])
            alone = one(layer, query[part], key[part], value[part], scale=0.3, window=window)
            torch.testing.assert_close(found[part], alone, atol=1e-5, rtol=1e-5)
    for slot in order:
        texts[slot].length += counts[slot]
        cache.keep(slot, texts[slot].length)


@pytest.mark.parametrize("window", [None, 1, 5, 50])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_attention_is_that_of_the_plain_cache(data: st.DataObject, window: int | None) -> None:
    torch.manual_seed(0)
    cache = paged_cache(LAYERS, 4, LONGEST, pages=2)
    texts = {slot: Text() for slot in range(4)}
    away: dict[int, HostRow] = {}
    for _ in range(data.draw(st.integers(2, 6))):
        moved = data.draw(st.integers(0, 3))
        if moved in away:
            cache.swap_in(moved, away.pop(moved))
        elif data.draw(st.booleans()) and len(away) < 3:
            away[moved] = cache.swap_out(moved, texts[moved].length)
        elif data.draw(st.booleans()):
            texts[moved] = Text()
            cache.keep(moved, 0)
        here = [slot for slot in texts if slot not in away and texts[slot].length < LONGEST]
        if here:
            running = data.draw(st.lists(st.sampled_from(here), min_size=1, unique=True))
            wanted = {slot: data.draw(st.sampled_from([1, 1, 2, PAGE, 20])) for slot in running}
            counts = {slot: min(count, LONGEST - texts[slot].length) for slot, count in wanted.items()}
            compare(cache, texts, counts, window)
        cache.table.check()


def test_what_was_not_a_number_harms_nobody_who_comes_after() -> None:
    cache = paged_cache(1, 2, LONGEST, pages=3)
    query, key, value = tensors(9)
    cache.attention([], [Chunk(0, 0, 9)])(0, query, key * torch.nan, value * torch.nan, scale=1.0)
    cache.clear(0)
    assert cache.table.free == 3
    assert all(part.isfinite().all() for part in cache._parts())


def parts_of_a_kernel(device: str, dtype: torch.dtype, page: int, size: int) -> tuple[list[Any], dict[str, Any]]:
    """Arguments: rows of 1, 5 and 3 queries whose keys lie scattered in pages."""
    torch.manual_seed(0)
    counts, lengths = torch.tensor([1, 5, 3]), torch.tensor([2 * page + 7, page, 3])
    table = torch.tensor([[4, 1, 6], [2, 0, 0], [5, 0, 0]], dtype=torch.int32)
    pools = [torch.randn(7, page, KEYS, size) for _ in range(2)]
    query = torch.randn(int(counts.sum()), HEADS, size)
    offsets = [torch.cat([torch.tensor([0]), one.cumsum(0)]).int() for one in (counts, lengths)]
    tensors = [one.to(device, dtype) for one in (query, *pools)] + [one.to(device) for one in offsets]
    others = {"seqused_k": lengths.int().to(device), "block_table": table.to(device), "num_splits": 1}
    return [*tensors, 5, int(lengths.max())], others


@NO_CUDA
@OLD_TORCH
@pytest.mark.parametrize("window_size", [(-1, 0), (0, 0), (4, 0), (300, 0)])
def test_the_kernel_is_the_formula(window_size: tuple[int, int]) -> None:
    arguments, others = parts_of_a_kernel("cuda", torch.bfloat16, 256, 64)
    how = {"scale": 0.3, "window_size": window_size, "enable_gqa": True, **others}
    plain = [part.float() if part.is_floating_point() else part for part in arguments[:5]]
    found = paged_attention.by_kernel(*arguments, **how)
    torch.testing.assert_close(found.float(), by_formula(*plain, *arguments[5:], **how), atol=3e-2, rtol=3e-2)


@NO_CUDA
@OLD_TORCH
@pytest.mark.parametrize("keys", [1, 2, HEADS])
@pytest.mark.parametrize("window_size", [(-1, -1), (4, 0)])
def test_the_kernel_with_one_query_a_row_is_the_formula(keys: int, window_size: tuple[int, int]) -> None:
    (query, key, value, _, offsets, _, longest), others = parts_of_a_kernel("cuda", torch.bfloat16, 256, 64)
    key, value = (torch.cat([pool, pool], 2)[:, :, :keys].contiguous() for pool in (key, value))
    rows = torch.arange(4, device="cuda", dtype=torch.int32)
    how = {"scale": 0.3, "window_size": window_size, "enable_gqa": keys != HEADS, **others}
    found = paged_attention.by_kernel(query[:3], key, value, rows, offsets, 1, longest, **how)
    plain = by_formula(query[:3].float(), key.float(), value.float(), rows, offsets, 1, longest, **how)
    torch.testing.assert_close(found.float(), plain, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("page", [4, 64, 256])
def test_pages_give_the_logits_of_rows(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = fast_form(small_decoder(context=600), "float32")
    whole = dictated(Runner(network, 4))
    use_pages(monkeypatch, page=page, record=eagerly)
    torch.testing.assert_close(dictated(Runner(network, 4)), whole, atol=1e-3, rtol=1e-3)


@NO_CUDA
@OLD_TORCH
def test_pages_give_the_logits_of_rows_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = fast_form(small_decoder(context=600).cuda(), "bfloat16")
    runner = Runner(network, 4)
    assert isinstance(runner.cache, PagedCache)
    found = dictated(runner)
    monkeypatch.setattr("fastserve.generation.memory.kernel_for", lambda network, place: None)
    whole = dictated(Runner(network, 4))
    torch.testing.assert_close(found, whole, atol=0.05 * float(whole[0].abs().max()), rtol=0)


@NO_CUDA
@OLD_TORCH
def test_an_engine_writes_on_cuda() -> None:
    options = EngineOptions(precision="bfloat16", profile_seconds=0.5, slots=2, rows=3)
    engine = Engine(small_decoder(context=600).cuda(), None, options)
    found = run(engine, orders_of([*PROMPTS, list(range(20, 290))], Sampling(seed=1, max_tokens=20)))
    assert [len(outputs) for outputs in found.values()] == [20] * 7
    assert not any(output.error for outputs in found.values() for output in outputs)
    cache_of(engine).table.check()


# Pages


class Pages(RuleBasedStateMachine):
    """A paged cache beside one of rows, to which the same is done."""

    slots = 4

    @initialize(pages=st.integers(1, 12), page=st.sampled_from([1, 4, 16]))
    def begin(self, pages: int, page: int) -> None:
        torch.manual_seed(0)
        self.needs = dict.fromkeys(range(self.slots), 0)
        self.paged = paged_cache(LAYERS, self.slots, LONGEST, pages=pages, page=page, needed=self.needs.__getitem__)
        self.whole = SlotCache(LAYERS, self.slots, LONGEST)
        self.away: list[tuple[HostRow, HostRow]] = []

    def take(self, slot: int, tokens: int) -> None:
        self.needs[slot] = tokens

    @rule(data=st.data(), slots=st.lists(st.integers(0, 3), min_size=1, unique=True))
    def read(self, data: st.DataObject, slots: list[int]) -> None:
        chunks = []
        for slot in slots:
            start = self.needs[slot]
            count = min(data.draw(st.integers(1, 20)), LONGEST - start)
            if count:
                chunks.append(Chunk(slot, start, count))
        for chunk in chunks:
            self.take(chunk.slot, chunk.stop)
        singles = [chunk for chunk in chunks if chunk.count == 1]
        front = {chunk.slot: chunk for chunk in singles}
        singles = [front[slot] for slot in self.whole.gather(list(front))]
        others = [chunk for chunk in chunks if chunk.count > 1]
        if not chunks:
            return
        steps = [cache.attention(singles, others) for cache in (self.paged, self.whole)]
        for layer in range(LAYERS):
            query, key, value = tensors(sum(chunk.count for chunk in chunks))
            found, plain = (step(layer, query, key, value, scale=0.3) for step in steps)
            torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
        for chunk in chunks:
            for cache in (self.paged, self.whole):
                cache.keep(chunk.slot, chunk.stop)

    @rule(slot=st.integers(0, 3), data=st.data())
    def keep_less(self, slot: int, data: st.DataObject) -> None:
        tokens = data.draw(st.integers(0, self.needs[slot]))
        self.take(slot, tokens)
        for cache in (self.paged, self.whole):
            cache.keep(slot, tokens)

    @rule(slot=st.integers(0, 3), data=st.data())
    def need_less(self, slot: int, data: st.DataObject) -> None:
        """Whoever had the slot is gone, which nobody tells the caches."""
        self.take(slot, data.draw(st.integers(0, self.needs[slot])))

    @rule(slot=st.integers(0, 3))
    def clear(self, slot: int) -> None:
        self.take(slot, 0)
        for cache in (self.paged, self.whole):
            cache.clear(slot) if slot < self.whole._rows or cache is self.paged else cache.keep(slot, 0)

    @rule(source=st.integers(0, 3), into=st.integers(0, 3), data=st.data())
    def copy(self, source: int, into: int, data: st.DataObject) -> None:
        tokens = data.draw(st.integers(0, self.needs[source]))
        self.take(into, tokens)
        for cache in (self.paged, self.whole):
            cache.copy(source, into, tokens)

    @rule(slot=st.integers(0, 3), data=st.data())
    def swap_out(self, slot: int, data: st.DataObject) -> None:
        tokens = data.draw(st.integers(0, self.needs[slot]))
        self.away.append((self.paged.swap_out(slot, tokens), self.whole.swap_out(slot, tokens)))
        self.take(slot, 0)

    @precondition(lambda self: self.away)
    @rule(slot=st.integers(0, 3))
    def swap_in(self, slot: int) -> None:
        paged, whole = self.away.pop()
        assert same(paged.layers, whole.layers)
        self.take(slot, paged.tokens)
        self.paged.swap_in(slot, paged)
        self.whole.swap_in(slot, whole)

    @invariant()
    def every_page_is_somewhere_once(self) -> None:
        self.paged.table.check()

    @invariant()
    def what_is_needed_is_there(self) -> None:
        for slot, tokens in self.needs.items():
            if tokens:
                assert same(contents(self.paged, slot, tokens), contents(self.whole, slot, tokens))


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_pages_that_nobody_needs_are_taken_before_the_pool_grows() -> None:
    needs = [0, 0, 0]
    cache = paged_cache(1, 3, 64, pages=4, needed=needs.__getitem__)
    for slot in (0, 1):
        needs[slot] = 16
        cache.reserve(slot, 16)
    needs[0] = 8
    cache.reserve(2, 8)
    assert (cache.moved, cache.table.counts) == (0, [1, 2, 1])
    cache.reserve(2, 24)
    assert cache.moved == 1
    assert cache.table.counts == [1, 2, 3]


def test_what_a_move_still_reads_is_not_given_away(pages: pytest.MonkeyPatch) -> None:
    books = RowCache(Limits(slots=4, rows=4, blocks=6, block_size=8))  # which hold that nobody owns anything
    runner = Runner(network_of("decoder"), 4, None, books)  # type: ignore[arg-type]
    cache = runner.cache
    assert isinstance(cache, PagedCache)
    jobs = [Job(number, 40, 1, 0.0) for number in range(3)]
    runner.read([Part(0, 0, list(range(40)), 1), Part(1, 0, list(range(50, 90)), 1)])
    before = [contents(cache, slot, 40) for slot in (0, 1)]
    cache.reserve(3, 8 * cache.table.free)  # and nothing is left
    runner.move([Place(jobs[2], 2, 40, source=0), SwapOut(jobs[1], 1, 40)])
    assert same(contents(cache, 2, 40), before[0])
    assert cache.table.counts == [5, 0, 5, 0]
    runner.move([SwapIn(jobs[1], 0, 40)])
    assert same(contents(cache, 0, 40), before[1])
    assert cache.moved == 0


@pytest.mark.parametrize("damage", ["twice", "lost", "beyond"])
def test_wrong_books_are_told(damage: str) -> None:
    table = PageTable(2, 4, 6, 8)
    table.grow(0, 16)
    table.check()
    if damage == "twice":
        table.table[1, 0], table.counts[1] = table.table[0, 0], 1
    elif damage == "lost":
        table.counts[0] = 1
    else:
        table.table[1, 3] = 5
    with pytest.raises(ValueError, match="pages"):
        table.check()
