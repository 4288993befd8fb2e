"""Two processes sum numbers up in memory that they share."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastserve.models.sums import MOST, MemorySums, create

ROUNDS = 40
SIZES = [(1,), (3, 5), (4, 768), (MOST + 3,)]
CHILD = """
import sys
from test_sums import checksum, part
from fastserve.models.sums import MemorySums
print(checksum(MemorySums(int(sys.argv[1]), 1, 2), 1))
"""


def part(rank: int, turn: int) -> Tensor:
    """What a process gives to its sum number `turn`."""
    drawing = torch.Generator().manual_seed(2 * turn + rank)
    size = SIZES[3] if turn % 20 == 9 else SIZES[turn % 3]
    found = torch.randn(size, generator=drawing)
    return found.bfloat16() if turn % 7 == 0 else found


def checksum(sum_up: Callable[[Tensor], Tensor], rank: int) -> int:
    found = 0
    for turn in range(ROUNDS):
        total = sum_up(part(rank, turn))
        expected = part(0, turn).float() + part(1, turn).float()
        assert total.dtype == part(rank, turn).dtype
        assert torch.equal(total, expected.to(total.dtype)), turn
        found = zlib.crc32(total.view(torch.uint8).numpy().tobytes(), found)
    return found


def test_both_have_the_sum_to_the_last_bit() -> None:
    file = create(2)
    if file is None:
        pytest.skip("this system has no memory without a name, or writes in any order")
    command = [sys.executable, "-c", CHILD, str(file)]
    child = subprocess.Popen(
        command, pass_fds=[file], stdout=subprocess.PIPE, text=True, cwd=__file__.rpartition("/")[0]
    )
    try:
        own = checksum(MemorySums(file, 0, 2), 0)
        said, _ = child.communicate(timeout=60)
        assert int(said) == own
    finally:
        child.kill()
        child.communicate()
