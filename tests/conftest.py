"""What every test may use."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import hosts
from hosts import Hosts

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported; spinning threads starve each other
why_not = functools.cache(hosts.why_not)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the repository; their licenses do not allow copies in it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets in {folder}, which are not part of the repository")
    return folder


@pytest.fixture(autouse=True)
def fastserve_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models and runs of a test stay in its own folder."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FASTSERVE_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def make_hosts() -> Iterator[Callable[..., Hosts]]:
    """`Hosts.start`, whose hosts are removed after the test; skips, saying why, where there can be none."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        yield lambda *arguments, **settings: stack.enter_context(Hosts.start(*arguments, **settings))
