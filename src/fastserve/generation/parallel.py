"""One engine over several processes that share a network: one decides, and tells the others what it computes.

The first process has the scheduler and the texts; the others have their share of the network and of the cache, and do
the moves and forward passes that they hear of. Messages are JSON in a broadcast of `torch.distributed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastserve.generation.job import Job
from fastserve.generation.runner import Part, Runner
from fastserve.generation.step import Move, Place, SwapIn, SwapOut

IDLE = timedelta(days=365)
"""How long the others wait for something to do; that the first one is gone they notice by its connection."""
_KINDS: dict[str, type[Any]] = {"place": Place, "out": SwapOut, "in": SwapIn}


def join(address: str, rank: int, processes: int) -> None:
    """Meet the other processes at `address` (HOST:PORT, where the first one listens)."""
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=processes, timeout=IDLE)


class LeadingRunner(Runner):
    """The first process's: the others do what it does."""

    def move(self, moves: Iterable[Move]) -> None:
        moves = list(moves)
        if moves:
            _say({"do": "move", "moves": [_written(move) for move in moves]})
            super().move(moves)

    def read(self, parts: Sequence[Part]) -> Tensor:
        _say({"do": "read", "parts": [_part(part) for part in parts]})
        return super().read(parts)

    def clear(self, slot: int) -> None:
        _say({"do": "clear", "slot": slot})
        super().clear(slot)

    def forget(self, job: int) -> None:
        if job in self._away:
            _say({"do": "forget", "job": job})
            super().forget(job)

    def close(self) -> None:
        """The others may end."""
        _say({"do": "end"})


def follow(runner: Runner) -> None:
    """Do what the first process does, until it ends."""
    while (message := _hear())["do"] != "end":
        match message["do"]:
            case "move":
                runner.move([_read(move) for move in message["moves"]])
            case "read":
                runner.read([Part(*part) for part in message["parts"]])
            case "forget":
                runner.forget(message["job"])
            case "clear":
                runner.clear(message["slot"])


def _part(part: Part) -> list[Any]:
    return [part.slot, part.start, list(part.ids), part.wanted, part.adapter]


def _written(move: Move) -> list[Any]:
    kind = next(name for name, known in _KINDS.items() if isinstance(move, known))
    last = [move.copied, move.source] if isinstance(move, Place) else [move.tokens]
    return [kind, move.job.id, move.slot, *last]


def _read(written: list[Any]) -> Move:
    kind, job, *others = written
    move: Move = _KINDS[kind](Job(job, prompt_length=1, max_tokens=1, arrival=0.0), *others)
    return move


def _say(message: dict[str, Any]) -> None:
    content = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(content)]), 0)
    dist.broadcast(content, 0)


def _hear() -> dict[str, Any]:
    size = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(size, 0)
    content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, 0)
    message: dict[str, Any] = json.loads(content.numpy().tobytes())
    return message
