"""Checkpoints of several workers, in real processes: with FSDP2's shards, other numbers of workers, and failures."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoint_member import Trained, load, named, save, wait_for_step, whole_step
from processes import environment, free_port, run_workers
from safetensors.torch import load_file
from torch import Tensor

from fastserve.distributed.checkpoints import Checkpoints

MEMBER = str(Path(__file__).with_name("checkpoint_member.py"))


def together(size: int, *actions: tuple[str, str, Path, Path]) -> None:
    run_workers(size, [MEMBER, *(str(word) for action in actions for word in action)])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved in three ways, and what the loaded states were, in files SAVED-KIND-WORKERS-RANK.

    alone: by one process; plain-2: two with the whole network each; fsdp-2: two with shards; fsdp-3: three.
    """
    out = tmp_path_factory.mktemp("out")
    one, plain, two, three = (out / name for name in ("alone", "plain-2", "fsdp-2", "fsdp-3"))
    save(Checkpoints(one), "alone", out)
    together(2, ("save", "plain", plain, out), ("save", "fsdp", two, out), ("load", "fsdp", one, out))
    together(
        3,
        ("save", "fsdp", three, out),
        *(("load", kind, folder, out) for folder in (one, plain, two) for kind in ("fsdp", "plain")),
    )
    together(2, ("load", "fsdp", three, out), ("load", "plain", three, out), ("load", "fsdp", two, out))
    for folder in (plain, two, three):
        load(Checkpoints(folder), "plain", out)
    return out


LOADED = [
    *((saved, kind, 3) for saved in ("alone", "plain-2", "fsdp-2") for kind in ("fsdp", "plain")),
    *((saved, "plain", 1) for saved in ("plain-2", "fsdp-2", "fsdp-3")),
    ("alone", "fsdp", 2),
    ("fsdp-2", "fsdp", 2),
    ("fsdp-3", "fsdp", 2),
    ("fsdp-3", "plain", 2),
]


@pytest.mark.parametrize(("saved", "kind", "workers"), LOADED)
def test_every_worker_gets_what_was_saved(out: Path, saved: str, kind: str, workers: int) -> None:
    expected = load_file(out / f"{saved}.safetensors")
    assert len(expected) == 4 + 4 * 3 + 4 + 1  # weights, optimizer, average, flags
    for rank in range(workers):
        found = load_file(out / f"{saved}-{kind}-{workers}-{rank}.safetensors")
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
            assert found[name].dtype == value.dtype


@pytest.mark.parametrize(("saved", "kind", "workers"), LOADED)
def test_training_goes_on_to_the_same_numbers(out: Path, saved: str, kind: str, workers: int) -> None:
    plain = Trained(sharded=False)
    plain.train(3)
    plain.train(2)
    found = load_file(out / f"{saved}-{kind}-{workers}-0.safetensors")
    expected: dict[str, Tensor] = named(plain.network.state_dict(), "after")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize(("saved", "had", "kind", "workers"), [
    ("alone", 1, "fsdp", 3), ("fsdp-2", 2, "fsdp", 3), ("fsdp-2", 2, "fsdp", 2), ("fsdp-3", 3, "plain", 2),
])  # fmt: skip
def test_own_state_goes_round_where_there_are_more_workers(
    out: Path, saved: str, had: int, kind: str, workers: int
) -> None:
    for rank in range(workers):
        found = load_file(out / f"{saved}-{kind}-{workers}-{rank}.safetensors")
        assert found["own_rank"].item() == rank % had
        assert found["own"].tolist() == [rank % had] * (rank % had + 1)


def test_each_worker_writes_a_part(out: Path) -> None:
    sizes = [(out / "fsdp-3" / "000000003" / f"worker-{rank:05d}.safetensors").stat().st_size for rank in range(3)]
    whole = (out / "alone" / "000000003" / "worker-00000.safetensors").stat().st_size
    assert max(sizes) < whole


def test_failures_of_one_worker_are_those_of_all(tmp_path: Path) -> None:
    """A damaged newest, a full disk, and a save that is back before the checkpoint is there."""
    damaged = [tmp_path / f"damaged-{worker}" for worker in range(2)]
    together(2, *(("save_two", "", folder, tmp_path) for folder in damaged), ("overlap", "", tmp_path / "o", tmp_path))
    for worker, folder in enumerate(damaged):
        path = folder / "000000002" / f"worker-{worker:05d}.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    together(
        3,
        *(("check", "1", folder, tmp_path) for folder in damaged),
        ("fill", "1", tmp_path / "full-1", tmp_path),
        ("fill", "0", tmp_path / "full-0", tmp_path),
    )


@pytest.mark.heavy
def test_a_killed_worker_never_leaves_half_a_checkpoint(tmp_path: Path) -> None:
    moments = random.Random(3)
    steps = [0]
    for attempt in range(2):
        port = free_port()
        words = [sys.executable, MEMBER, "save_for_ever", "", str(tmp_path / "saved"), str(tmp_path)]
        started = [subprocess.Popen(words, env=environment(rank, 2, port)) for rank in range(2)]
        wait_for_step(tmp_path / "saved", steps[-1] + 2)
        time.sleep(moments.uniform(0, 0.05))
        killed, other = started if attempt % 2 else reversed(started)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert other.wait(timeout=60) > 0  # it does not wait for ever, nor goes on alone
        steps.append(whole_step(Checkpoints(tmp_path / "saved")))
    assert steps == sorted(set(steps))
