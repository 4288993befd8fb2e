"""What this machine can compute with. torch is imported only by the functions that need it."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.errors import ConfigError

if TYPE_CHECKING:
    import torch


def let_threads_sleep() -> None:
    """Make waiting compute threads sleep instead of spin; to be called before torch is imported, else it does nothing.

    On shared cores spinning threads starve each other: a training run of small batches took 57 s of processor time
    with them and 7 s without. A user's own OMP_WAIT_POLICY is left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


KEPT_BYTES = 1 << 30
LARGEST_KEPT_BYTES = 32 << 20
"""The most that glibc takes; a larger block is always given back to the system."""


LARGE_BYTES = 1 << 20


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next allocation instead of giving it back to the system.

    A training step frees and allocates the same large blocks again; when each came anew from the system, page by page,
    an encoder's steps took a tenth more processor time. Does nothing without glibc, or where the user's environment
    says what malloc keeps.
    """
    _set_malloc(trim_threshold=KEPT_BYTES, mmap_threshold=LARGEST_KEPT_BYTES)


def give_back_large_blocks() -> None:
    """Let large blocks go back to the system once they are freed: where memory is short and not time.

    Does nothing where `keep_freed_memory` does nothing.
    """
    _set_malloc(trim_threshold=LARGE_BYTES, mmap_threshold=LARGE_BYTES)


def _set_malloc(*, trim_threshold: int, mmap_threshold: int) -> None:
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-1, trim_threshold)  # malloc.h
        mallopt(-3, mmap_threshold)


def give_back_freed_memory() -> None:
    """Give the system what is freed, also between blocks that are in use: for the end of a stage that needed much."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


OUT_OF_MEMORY = ("defaultcpuallocator", "can't allocate memory", "bad_alloc", "out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice: Python's own, or what torch raises in its place."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in OUT_OF_MEMORY)


def cores() -> int:
    """How many cores this process may use: its affinity, further limited by its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores()
    return max(1, min(allowed, int(quota)) if quota else allowed)


def _cgroup_cores() -> float | None:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def free_memory(place: torch.device) -> int | None:
    """Bytes that this process can still take on a device: what is free, and what torch keeps for itself there.

    On the processor what the system can give without swapping, further limited by the control group; None where it
    does not say.
    """
    if place.type == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
        return torch.cuda.mem_get_info(place)[0] + kept
    if place.type != "cpu":
        return None
    amounts = [amount for amount in (_available(), _cgroup_memory()) if amount is not None]
    return min(amounts, default=None)


def allowed_memory() -> int | None:
    """Bytes that the limits of this process (`ulimit -d` and `-v`) leave it, of addresses; None without a limit."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    used = _amounts(Path("/proc/self/status"))
    limits = {
        "VmData": resource.getrlimit(resource.RLIMIT_DATA)[0],
        "VmSize": resource.getrlimit(resource.RLIMIT_AS)[0],
    }
    left = [most - used.get(name, 0) for name, most in limits.items() if most != resource.RLIM_INFINITY]
    return min(left, default=None)


def _available() -> int | None:
    return _amounts(Path("/proc/meminfo")).get("MemAvailable")


def _amounts(path: Path) -> dict[str, int]:
    """Bytes by name, of a file of the kernel that says `Name:  123 kB`; empty where there is none."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(amount) * 1024 for name, amount, _ in words}


def _cgroup_memory() -> int | None:
    """What the control group (of either version) leaves; it gives up files in memory when something else needs it."""
    root = Path("/sys/fs/cgroup")
    names = (root / "memory.max", root / "memory.current")
    older = (root / "memory" / "memory.limit_in_bytes", root / "memory" / "memory.usage_in_bytes")
    limit, used = names if names[0].exists() else older
    try:
        most, now = limit.read_text("ascii").strip(), int(used.read_text("ascii"))
        lines = (limit.parent / "memory.stat").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return None
    given_up = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return None if most == "max" else max(0, int(most) - now + given_up)


@functools.cache
def processor_flags() -> frozenset[str]:
    """Instruction sets of the processor as Linux names them (`avx512_bf16`, `amx_bf16`); empty where unknown."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def has_gpu() -> bool:
    """Whether `pick_device` finds a GPU. torch, which takes a second, is only asked where the system has a driver."""
    return Path("/dev/nvidiactl").exists() and pick_device().type != "cpu"


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first GPU where there is one, else the processor; any name that torch knows is taken."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"no device is called '{name}': expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device '{name}' was asked for, but torch {torch.__version__} finds no GPU; use device: auto or cpu"
        )
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in. `auto` is bfloat16 where the hardware multiplies it fast, else float32."""
    import torch

    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = bool({"avx512_bf16", "amx_bf16", "bf16"} & processor_flags())
        return torch.bfloat16 if fast else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
