"""One of several workers that save and load checkpoints: run by test_checkpoints.py.

python checkpoint_member.py ACTION KIND FOLDER OUT [ACTION KIND FOLDER OUT ...], with the variables of torchrun in the
environment, or alone where the first KIND is `alone`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from fastserve.distributed.checkpoints import Checkpoints, own_group
from fastserve.distributed.places import beside, into, optimizer_state
from fastserve.errors import StorageError


class Trained:
    """A small network after a few steps: plain, or in shards (`sharded`), with the same numbers."""

    def __init__(self, *, sharded: bool) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2))  # 2 rows: a third worker has none
        if sharded:
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)
        self.average: dict[str, Tensor] = {}

    def train(self, steps: int = 3) -> None:
        for step in range(steps):
            torch.manual_seed(step)
            self.network(torch.randn(6, 7)).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.average = {name: value.detach() * 0.5 for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {
            "progress": {"step": 3, "why": None},
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "shared": torch.arange(10) % 3 == 0,
        }

    def load(self, checkpoints: Checkpoints) -> tuple[dict[str, Any], Any]:
        found = checkpoints.newest()
        assert found is not None
        weights = self.network.state_dict()
        state, own = found.load(
            into({"network": weights}),
            optimizer_state(self.optimizer, "optimizer"),
            beside(weights, "average"),
        )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        return state, own


def together(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone().contiguous()


def named(state: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of a state, put together, by a name."""
    if isinstance(state, Tensor):
        return {name: together(state)}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {key: value for part, item in items for key, value in named(item, f"{name}/{part}").items()}


def save(checkpoints: Checkpoints, kind: str, out: Path) -> None:
    trained = Trained(sharded=kind == "fsdp")
    trained.train()
    rank = dist.get_rank() if dist.is_initialized() else 0
    checkpoints.save(3, trained.state(), own={"rank": rank, "values": torch.full((rank + 1,), rank)})
    saved = named(trained.state())
    if rank == 0:
        save_file(saved, out / f"{checkpoints.shelf.folder.name}.safetensors")
    trained.train(1)  # what is saved must not change with what is trained
    checkpoints.wait()


def load(checkpoints: Checkpoints, kind: str, out: Path) -> None:
    """Leave what was loaded, and the weights after two more steps, in `out`."""
    trained = Trained(sharded=kind == "fsdp")
    state, own = trained.load(checkpoints)
    tensors = named(state)
    trained.train(2)
    tensors |= named(trained.network.state_dict(), "after")
    rank = dist.get_rank() if dist.is_initialized() else 0
    tensors |= {"own": own["values"], "own_rank": torch.tensor(own["rank"])}
    size = dist.get_world_size() if dist.is_initialized() else 1
    save_file(tensors, out / f"{checkpoints.shelf.folder.name}-{kind}-{size}-{rank}.safetensors")


def save_for_ever(checkpoints: Checkpoints, kind: str, out: Path) -> None:
    """Until killed. All values of checkpoint n are n."""
    step = 0 if (found := checkpoints.newest()) is None else found.step
    while True:
        step += 1
        checkpoints.save(step, {"values": torch.full((200_000,), step)}, own={"values": torch.full((10_000,), step)})


def save_two(checkpoints: Checkpoints, kind: str, out: Path) -> None:
    for step in (1, 2):
        values = torch.full((1000,), step)
        checkpoints.save(step, {"values": values, "more": values.clone(), "less": values[:3]}, own={"values": values})
    checkpoints.wait()


def whole_step(checkpoints: Checkpoints) -> int:
    """The step of the newest checkpoint, all of whose values are its step."""
    found = checkpoints.newest()
    assert found is not None
    state, own = found.load()
    assert bool((state["values"] == found.step).all())
    assert bool((own["values"] == found.step).all())
    return found.step


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while max(Checkpoints(folder).shelf.steps(), default=0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def check(checkpoints: Checkpoints, kind: str, out: Path) -> None:
    """That the newest is of step `kind` throughout."""
    assert whole_step(checkpoints) == int(kind)


def fill(checkpoints: Checkpoints, kind: str, out: Path) -> None:
    """Save more than one worker's disk takes, and then what it takes again."""
    import resource

    checkpoints.save(1, {"values": torch.zeros(10)})
    checkpoints.wait()
    if dist.get_rank() == int(kind):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    checkpoints.save(2, {"values": torch.zeros(10)}, own={"values": torch.zeros(100_000)})
    try:
        checkpoints.wait()
    except StorageError as error:
        assert f"step 2 was not written; worker {kind}" in str(error)  # noqa: PT017
        assert "the disk is full" in str(error)  # noqa: PT017
    else:
        raise AssertionError("nothing failed")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    checkpoints.save(2, {"values": torch.zeros(10)})
    checkpoints.wait()
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2


def overlap(checkpoints: Checkpoints, kind: str, out: Path) -> None:
    """That `save` is back before the checkpoint is there."""
    checkpoints.save(1, {"values": torch.zeros(5_000_000)})
    there = checkpoints.shelf.place(1).exists()
    checkpoints.wait()
    assert not there
    assert checkpoints.shelf.place(1).exists()


ACTIONS = {action.__name__: action for action in (save, load, save_for_ever, save_two, check, fill, overlap)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] != "alone":
        dist.init_process_group("gloo")
    group = own_group()
    words = sys.argv[1:]
    while words:
        (action, kind, folder, out), words = words[:4], words[4:]
        ACTIONS[action](Checkpoints(Path(folder), group), kind, Path(out))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
