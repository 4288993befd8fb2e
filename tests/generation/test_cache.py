"""Rows and blocks: where prefixes are found, who gives way, and that the books are true."""

from __future__ import annotations

import pytest

from fastserve.generation.cache import NOTHING, Prefix, RowCache
from fastserve.generation.job import Job
from fastserve.generation.limits import Limits


def cache_of(rows: int = 3, blocks: int = 12) -> RowCache:
    return RowCache(Limits(slots=1, rows=rows, blocks=blocks, block_size=4))


def placed(cache: RowCache, number: int, hashes: str, tokens: int | None = None) -> Job:
    """A job whose prompt has a block for each letter, all read."""
    job = Job(number, 4 * len(hashes), 4, 0.0, prefix=hashes)
    job.slot = cache.place(job, tokens or job.prompt_length, cache.find(hashes, job.prompt_length - 1))
    job.computed = job.prompt_length
    cache.computed(job)
    cache.check()
    return job


def test_the_longest_beginning_in_whole_blocks_is_found() -> None:
    cache = cache_of()
    job = placed(cache, 0, "abc")
    assert cache.find("abcd", 100) == Prefix(12, job.slot)
    assert cache.find("abx", 100) == Prefix(8, job.slot)
    assert cache.find("abc", 11) == Prefix(8, job.slot)
    assert cache.find("xbc", 100) == NOTHING
    assert cache.find("abc", 0) == NOTHING


def test_a_row_left_behind_is_taken_over_where_nothing_is_lost_by_it() -> None:
    cache = cache_of()
    first = placed(cache, 0, "ab")
    slot = first.slot
    cache.release(first)
    assert placed(cache, 1, "abc").slot == slot


def test_a_longer_row_is_copied_from_rather_than_taken_over() -> None:
    cache = cache_of()
    first = placed(cache, 0, "abcd")
    slot = first.slot
    cache.release(first)
    assert placed(cache, 1, "abx").slot != slot
    assert cache.find("abcd", 100) == Prefix(16, slot)


def test_the_least_recently_used_row_gives_way_first() -> None:
    cache = cache_of(rows=3, blocks=6)
    jobs = [placed(cache, number, hashes) for number, hashes in enumerate(("aA", "bB", "cC"))]
    for job in jobs:
        cache.release(job)
    again = placed(cache, 3, "aA")  # is used again, so that "b" is the oldest now
    placed(cache, 4, "dD")
    assert [cache.find(hashes, 100).tokens for hashes in ("aA", "bB", "cC")] == [8, 0, 8]
    assert again.slot is not None


def test_no_more_is_given_than_there_is() -> None:
    cache = cache_of(rows=2, blocks=4)
    job = placed(cache, 0, "ab")
    assert cache.fits(2)
    assert not cache.fits(3)
    assert cache.grow(job, 16)
    assert not cache.grow(job, 17)
    cache.check()
    assert (cache.blocks_at_hand, cache.used_share) == (0, 1.0)


def test_a_row_that_is_not_owned_cannot_be_used() -> None:
    cache = cache_of()
    job = placed(cache, 0, "a")
    cache.release(job)
    with pytest.raises(ValueError, match="job 0 has no row"):
        cache.grow(job, 8)


@pytest.mark.parametrize("damage", ["free_blocks", "left_blocks", "free_host_blocks"])
def test_wrong_books_are_told(damage: str) -> None:
    cache = cache_of()
    cache.release(placed(cache, 0, "ab"))
    cache.check()
    setattr(cache, damage, getattr(cache, damage) + 1)
    with pytest.raises(ValueError, match="blocks"):
        cache.check()


def test_a_row_in_two_lists_is_told() -> None:
    cache = cache_of()
    placed(cache, 0, "ab")
    cache.rows[0].owner = cache.rows[1].owner = 7
    with pytest.raises(ValueError, match="rows"):
        cache.check()
