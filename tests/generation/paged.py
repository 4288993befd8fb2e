"""The paged cache and its recorded steps, where there is no graphics processor: by the formula, and not recorded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastserve.generation import memory
from fastserve.generation.job import Job
from fastserve.generation.network import Decodes
from fastserve.generation.paged_attention import PageKernel, by_formula, knows_pages
from fastserve.generation.paged_cache import PagedCache
from fastserve.generation.recorded import Compute, Record
from fastserve.generation.runner import Part, Runner
from fastserve.generation.slots import SlotCache
from fastserve.generation.step import Move, Place, SwapIn, SwapOut

PAGE = 8
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
OLD_TORCH = pytest.mark.skipif(not knows_pages(), reason="this torch has no kernel for pages")


def eagerly(compute: Compute) -> Compute:
    """A `Record` that records nothing."""
    return compute


def use_pages(patch: pytest.MonkeyPatch, *, page: int = PAGE, record: Record | None = None) -> None:
    """Whatever engine or runner is made from now on has pages, of so many tokens."""

    def kernel_for(network: Decodes, place: torch.device) -> PageKernel:
        return by_formula

    def recorder(network: Decodes, place: torch.device) -> Record | None:
        return record if getattr(network, "is_recordable", False) else None

    patch.setattr(memory, "kernel_for", kernel_for)
    patch.setattr(memory, "recorder", recorder)
    patch.setattr(memory, "PAGE", page)


def paged_cache(layers: int, slots: int, longest: int, *, pages: int, page: int = PAGE, **others: object) -> PagedCache:
    return PagedCache(layers, slots, longest, torch.device("cpu"), by_formula, pages=pages, page=page, **others)  # type: ignore[arg-type]


def contents(cache: PagedCache | SlotCache, slot: int, tokens: int) -> list[tuple[Tensor, Tensor] | None]:
    """Of every layer the keys and values (K, tokens, D)."""
    found: list[tuple[Tensor, Tensor] | None] = []
    for pair in cache._layers:
        if pair is None:
            found.append(None)
        elif isinstance(cache, SlotCache):
            found.append(
                (pair[0][cache.places[slot], :, :tokens].clone(), pair[1][cache.places[slot], :, :tokens].clone())
            )
        else:
            pages = torch.from_numpy(cache.table.of(slot).copy()).long()
            found.append((_read(pair[0], pages, tokens), _read(pair[1], pages, tokens)))
    return found


def _read(part: Tensor, pages: Tensor, tokens: int) -> Tensor:
    return part[pages].flatten(0, 1)[:tokens].transpose(0, 1)


def same(first: Sequence[tuple[Tensor, Tensor] | None], second: Sequence[tuple[Tensor, Tensor] | None]) -> bool:
    def equal(one: tuple[Tensor, Tensor] | None, other: tuple[Tensor, Tensor] | None) -> bool:
        if one is None or other is None:
            return one is other
        return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])

    return len(first) == len(second) and all(map(equal, first, second))


def dictated(runner: Runner) -> list[Tensor]:
    """Logits float32 of steps that read given tokens: prompts in chunks, beside texts that go on; a copy of one, and
    another that is swapped out and comes back."""
    jobs = [Job(number, 300, 1, 0.0) for number in range(4)]
    prompts = [list(range(20, 290)), [7] * 30, [5, 17, 200]]
    steps: list[list[Part] | list[Move]] = [
        [Part(0, 0, prompts[0][:200], 0), Part(1, 0, prompts[1], 1)],
        [Part(0, 200, prompts[0][200:], 1), Part(1, 30, [8], 1), Part(2, 0, prompts[2], 1)],
        [Part(slot, start, [9], 1) for slot, start in ((2, 3), (0, 270), (1, 31))],
        [Place(jobs[3], 3, 260, source=0), SwapOut(jobs[1], 1, 32)],
        [Part(slot, start, [11], 1) for slot, start in ((0, 271), (3, 260), (2, 4))],
        [SwapIn(jobs[1], 1, 32)],
        *[[Part(slot, start + more, [more], 1) for slot, start in ((1, 32), (0, 272))] for more in range(3)],
    ]
    found = []
    for step in steps:
        if isinstance(step[0], Part):
            found.append(runner.read(step).float().cpu())  # type: ignore[arg-type]
        else:
            runner.move(step)  # type: ignore[arg-type]
    return found
