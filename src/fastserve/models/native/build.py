"""C as a library: built once for this processor by the machine's compiler, and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from fastserve import device
from fastserve.log import say

HEADERS = Path(__file__).parent
"""Of all sources."""
OPTIONS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-fopenmp")
DEFINED = {"avx512_bf16": "-DHAS_BF16", "avx512_vnni": "-DHAS_VNNI"}
"""By what the processor has."""
SECONDS = 120.0
"""For the compiler, which needs three."""
NEEDED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
SWITCH = "FASTSERVE_NATIVE"
"""0 in the environment: torch's kernels compute everything."""


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """None where the processor has no AVX-512 or the machine no compiler, which is then said in one line."""
    if os.environ.get(SWITCH) == "0" or not device.processor_flags() >= NEEDED:
        return None
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(built(source, compiler, folder())))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        say(f"{source.name} could not be built by {compiler}, so that torch's slower kernels compute: {reason}")
        return None


@functools.cache
def _compiler() -> str | None:
    found = shutil.which(os.environ.get("CC") or "gcc") or shutil.which("cc")
    if found is None:
        say("no C compiler (gcc) is there, with which models would be faster: torch's kernels compute everything")
    return found


def folder() -> Path:
    """Where libraries are kept: what this user has built, and nobody else could. RuntimeError, OSError."""
    found = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastserve"
    found.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = found.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise RuntimeError(f"{found} can be written by others: make it yours alone (chmod 700), or delete it")
    return found


def built(source: Path, compiler: str, folder: Path) -> Path:
    """The library in the folder, of this source, compiler and processor. OSError, SubprocessError."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=SECONDS)
    texts = [path.read_text("utf-8") for path in (source, *sorted(HEADERS.glob("*.h")))]
    parts = [*texts, version.stdout, *OPTIONS, *sorted(device.processor_flags())]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    found = folder / f"{source.stem}-{name}.so"
    if not found.exists():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            new = Path(place) / found.name
            defined = [option for flag, option in DEFINED.items() if flag in device.processor_flags()]
            command = [compiler, *OPTIONS, *defined, f"-I{HEADERS}", str(source), "-o", str(new), "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
            os.replace(new, found)
    return found
