"""Results in order, few at a time, errors in their place."""

from __future__ import annotations

import threading

import pytest

from fastserve.training.ahead import ahead


def test_results_come_in_order_and_not_too_early() -> None:
    begun: list[int] = []

    def double(number: int) -> int:
        begun.append(number)
        return 2 * number

    results = ahead(double, range(100), depth=3)
    assert next(results) == 0
    assert len(begun) <= 4
    assert list(results) == list(range(2, 200, 2))
    assert threading.active_count() < 50


def test_an_error_comes_where_the_result_would() -> None:
    results = ahead(lambda number: 1 // number, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_stopping_early_leaves_no_thread() -> None:
    results = ahead(lambda number: number, range(1000))
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
