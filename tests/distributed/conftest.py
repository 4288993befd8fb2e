"""Several hosts on one machine, where it allows them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import hosts
from hosts import Hosts

why_not = functools.cache(hosts.why_not)


@pytest.fixture
def make_hosts() -> Iterator[Callable[..., Hosts]]:
    """`Hosts.start`, whose hosts are removed after the test; skips, saying why, where there can be none."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        yield lambda *arguments, **settings: stack.enter_context(Hosts.start(*arguments, **settings))
