"""Read the next batches while the current one is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], *, depth: int = 2) -> Iterator[Result]:
    """`map(function, items)`, computed in one thread up to `depth` ahead. An error comes where its result would."""
    waiting = iter(items)
    with ThreadPoolExecutor(1, "ahead") as thread:
        begun: deque[Future[Result]] = deque(thread.submit(function, item) for item in islice(waiting, depth))
        try:
            while begun:
                result = begun.popleft().result()
                begun.extend(thread.submit(function, item) for item in islice(waiting, 1))
                yield result
        finally:
            for future in begun:
                future.cancel()
