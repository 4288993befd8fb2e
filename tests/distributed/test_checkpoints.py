"""Checkpoints of one process: whole or absent, the same by either way of writing, the one before a damaged one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from checkpoint_member import wait_for_step, whole_step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastserve.distributed.checkpoints import Checkpoints, own_group
from fastserve.distributed.pieces import DTYPES
from fastserve.distributed.places import into
from fastserve.errors import StorageError, TrainingError

MEMBER = str(Path(__file__).with_name("checkpoint_member.py"))


@pytest.fixture(scope="module")
def group() -> Iterator[dist.ProcessGroup]:
    """A world of one that goes the way of several workers."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    made = own_group()
    assert made is not None
    yield made
    dist.destroy_process_group()


def tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random bits, of which those that are no number are made numbers."""
    count = torch.Size(shape).numel()
    random = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=random).bool()
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=random).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


def bits(value: Tensor) -> Tensor:
    return value.reshape(-1).contiguous().view(torch.uint8)


TENSORS = st.builds(
    tensor,
    st.sampled_from(list(DTYPES.values())),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.integers(0, 99),
)
STATES = st.dictionaries(
    st.text("a/@#~", max_size=3) | st.integers(0, 3),
    TENSORS | st.lists(TENSORS | st.integers(), max_size=3),
    max_size=5,
)


def flat(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in flat(value)]
    return [leaf for value in state for leaf in flat(value)] if isinstance(state, list) else [state]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=STATES, own=STATES)
def test_both_ways_of_writing_give_the_same_files_and_the_same_state(
    tmp_path_factory: pytest.TempPathFactory, group: dist.ProcessGroup, state: Any, own: Any
) -> None:
    folders = [tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("together")]
    ways = [Checkpoints(folders[0]), Checkpoints(folders[1], group)]
    for way in ways:
        way.save(7, state, own=own)
        way.wait()
    for name in ("state.json", "worker-00000.safetensors", "SHA256SUMS"):
        one, other = ((folder / "000000007" / name).read_bytes() for folder in folders)
        assert one == other
    for way in ways:
        found = way.newest()
        assert found is not None
        for before, after in zip(flat([state, own]), flat(list(found.load())), strict=True):
            if isinstance(before, Tensor):
                assert before.dtype == after.dtype
                assert before.shape == after.shape
                assert torch.equal(bits(before), bits(after))
            else:
                assert before == after


def test_tensors_are_filled_where_they_are_and_others_are_made(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weights": torch.arange(6.0).reshape(2, 3), "more": [torch.ones(2)]})
    weights = torch.nn.Parameter(torch.zeros(2, 3))
    found = checkpoints.newest()
    assert found is not None
    state, own = found.load(into({"weights": weights}))
    assert state["weights"] is weights
    assert weights.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert state["more"][0].tolist() == [1, 1]
    assert own is None


@pytest.mark.parametrize("other", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64)])
def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, other: Tensor) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weights": torch.zeros(2, 3)})
    found = checkpoints.newest()
    assert found is not None
    with pytest.raises(TrainingError, match=r"weights is \(2, 3\) torch.float32"):
        found.load(into({"weights": other}))


def test_nothing_but_json_and_safetensors_is_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weights": torch.zeros(2, 3)})
    checkpoints.wait()
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"state.json", "worker-00000.safetensors", "SHA256SUMS"}


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 10, 10):
        checkpoints.save(step, {"step": step})
    checkpoints.wait()
    assert checkpoints.shelf.steps() == [10, 3]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def cut_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize("damage", [flip, cut, cut_line, Path.unlink])
@pytest.mark.parametrize("name", ["state.json", "worker-00000.safetensors", "SHA256SUMS"])
def test_a_damaged_newest_is_named_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"values": torch.full((1000,), step)})
    checkpoints.wait()
    damage(tmp_path / "000000002" / name)
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found.step == 1
    assert found.load()[0]["values"].tolist() == [1] * 1000
    assert "000000002 is damaged" in caplog.text
    assert name in caplog.text


def test_a_damaged_one_is_replaced_by_the_same_step_and_does_not_count_as_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4):
        checkpoints.save(step, {"step": step})
    checkpoints.wait()
    flip(tmp_path / "000000004" / "worker-00000.safetensors")
    again = Checkpoints(tmp_path)
    for step in (3, 4):
        found = again.newest()
        assert found is not None
        again.save(step, {"step": step})
        again.wait()
        assert again.shelf.steps() == [step, step - 1]
    found = again.newest()
    assert found is not None
    assert found.step == 4


def test_a_run_that_is_alone_does_not_import_what_several_need(tmp_path: Path) -> None:
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom fastserve.distributed.checkpoints import Checkpoints\n"
        f"c = Checkpoints(Path({str(tmp_path)!r}))\nc.save(1, {{'a': torch.ones(3)}})\nc.newest().load()\n"
        "assert 'torch.distributed.checkpoint' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_failed_save_says_so_and_the_next_one_works(tmp_path: Path) -> None:
    """The disk is full: a small file system in memory where the machine allows one to be mounted."""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "x", tmp_path]).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(1, {"values": torch.ones(10)})
        checkpoints.save(2, {"values": torch.ones(1_000_000)})
        with pytest.raises(StorageError, match="the disk is full"):
            checkpoints.wait()
        found = checkpoints.newest()
        assert found is not None
        assert found.step == 1
        checkpoints.save(2, {"values": torch.ones(1000)})
        checkpoints.wait()
        assert checkpoints.shelf.steps() == [2, 1]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    values = torch.zeros(5_000_000)
    checkpoints.save(1, {"values": values})
    there = checkpoints.shelf.place(1).exists()
    values.fill_(1)
    found = checkpoints.newest()
    assert not there
    assert found is not None
    assert not found.load()[0]["values"].any()


def test_a_killed_process_never_leaves_half_a_checkpoint(tmp_path: Path) -> None:
    steps = [0]
    for attempt in range(5):
        words = [sys.executable, MEMBER, "save_for_ever", "alone", str(tmp_path), str(tmp_path)]
        process = subprocess.Popen(words)
        wait_for_step(tmp_path, steps[-1] + 2)
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps.append(whole_step(Checkpoints(tmp_path)))
    assert steps == sorted(set(steps))
