"""What a node says of itself: versions, cores and memory, the configuration, checksums of its files."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import fastserve
from fastserve import device, files
from fastserve.config import Config, home
from fastserve.distributed.preflight.messages import Facts

LIBRARIES = ("numpy", "tokenizers", "rjieba", "safetensors", "scikit-learn", "transformers", "ray")
ABSENT = "none"
GIB = 2**30


def facts(config: Config | None) -> Facts:
    """This node's. Reads the files of the configuration whole."""
    paths, unchecked = data_files(config)
    return Facts(
        versions=versions(),
        cores=device.cores(),
        gpus=_gpus(),
        memory_gib=_free_memory() / GIB,
        home=str(home()),
        home_gib=shutil.disk_usage(_existing(home())).free / GIB,
        configuration=None if config is None else config.to_json(),
        data={path: _checksum(Path(path).expanduser()) for path in paths},
        unchecked=unchecked,
    )


def versions() -> dict[str, str]:
    """Of what must be alike on all nodes."""
    import torch

    nccl = ABSENT
    if torch.cuda.is_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return {
        "fastserve": fastserve.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nccl": nccl,
        "processor": platform.machine(),
        **{name: _version(name) for name in LIBRARIES},
    }


def data_files(config: Config | None) -> tuple[list[str], list[str]]:
    """Local files that the configuration names, as it names them, and its addresses that are none.

    A file that is absent here counts: elsewhere it may be there.
    """
    if config is None:
        return [], []
    named = [config.data.train, config.data.validation, config.data.test]
    named += [config.text.user_dictionary, config.text.tokenizer, config.model.embeddings]
    words = [word for word in named if isinstance(word, str) and word != "auto"]
    local: list[str] = []
    for word in words:
        local += [] if "://" in word else _expanded(word)
    local += _model_files(config.model.network)
    return list(dict.fromkeys(local)), [word for word in words if "://" in word]


def data_bytes(config: Config | None) -> int:
    """Size of the files of the configuration that are here."""
    paths = [Path(path).expanduser() for path in data_files(config)[0]]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _expanded(word: str) -> list[str]:
    if not glob.has_magic(word):
        return [word]
    return sorted(glob.glob(word, recursive=True)) or [word]


def _model_files(network: str) -> list[str]:
    """Files of a network that is a folder."""
    folder = Path(network).expanduser()
    if not folder.is_dir() or os.sep not in network:
        return []
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def _checksum(path: Path) -> str:
    if not path.exists():
        return "missing"
    if not path.is_file():
        return "not a regular file"  # reading a pipe might never end
    try:
        return files.sha256(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _free_memory() -> int:
    """Bytes that programs may still take: what Linux calls available, else the free pages."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
