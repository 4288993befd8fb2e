"""What the C library does with freed memory decides how many pages a step must fetch anew."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from fastserve import device

KEEP and device.keep_freed_memory()

def step():
    blocks = [np.ones(24 << 20, np.uint8) for _ in range(8)]

step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, keep: bool, **variables: str) -> int:
    """Pages that a process fetches while it allocates 8 blocks of 24 MiB that it had before."""
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name} | variables
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.replace("KEEP", str(keep))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_is_used_again_instead_of_fetched_anew() -> None:
    assert page_faults(keep=True) < 1_000 < page_faults(keep=False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_what_the_environment_says_of_malloc_is_left_alone() -> None:
    assert page_faults(keep=True, MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 1_000


GIVEN_BACK = """
import numpy as np
from pathlib import Path
from fastserve import device

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

device.keep_freed_memory()
blocks = [np.ones(1 << 16, np.uint8) for _ in range(2_000)]
blocks = blocks[-1:]
before = resident()
device.give_back_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_below_a_block_in_use_is_given_back_when_asked() -> None:
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100 << 20
