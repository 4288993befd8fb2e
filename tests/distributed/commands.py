"""`fastserve train` as a process of its own, and what one does to its workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
REVIEWS = ["train", "--data", str(HERE.parents[1] / "examples/reviews.tsv")]
TEXTCNN = [*REVIEWS, "--network", "textcnn", "model.options.dropout=0"]
FAULTY = [*REVIEWS, "--network", "faulty:Faulty", "train.batch=16", "train.early_stopping=0"]
SECONDS = 270
"""Enough for any run here on a machine that is busy with something else."""
Start = Callable[..., "subprocess.Popen[str]"]


def environment(home: Path, **more: str) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "FASTSERVE_HOME": str(home), "PYTHONPATH": paths, **more}


def start(
    home: Path, *words: str, env: Mapping[str, str] | None = None, run: Start = subprocess.Popen
) -> subprocess.Popen[str]:
    """The command WORDS, by subprocess.Popen or that of a host."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return run([sys.executable, "-m", "fastserve", *words, "--json"], env=environment(home, **(env or {})), **pipes)


def finished(process: subprocess.Popen[str]) -> tuple[dict[str, torch.Tensor], str]:
    """The weights, and what was said."""
    out, said = ended(process, 0)
    return load_file(Path(json.loads(out.splitlines()[-1])["folder"]) / "model.safetensors"), said


def failed(process: subprocess.Popen[str], code: int) -> str:
    """What a command said that ended with `code`."""
    return ended(process, code)[1]


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    """Standard output and error of a command that ended with `code`."""
    try:
        out, said = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it does not end: {process.communicate()}")
    assert process.returncode == code, f"{process.returncode}: {out}{said}"
    return out, said


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def wait_for(happened: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> Any:
    """What `happened` returns as soon as that is true, while the process runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if found := happened():
            return found
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"it did not happen: {process.communicate()}")


def checkpoint(home: Path) -> Callable[[], Sequence[Path]]:
    return lambda: sorted(home.glob("runs/*/checkpoints/0*"))


def step(home: Path, at_least: int, ranks: Sequence[int] = (0,)) -> Callable[[], bool]:
    """Whether those workers have told of so many steps."""

    def happened() -> bool:
        return all(int(heartbeat(home, rank).get("step", 0)) >= at_least for rank in ranks)

    return happened


def heartbeat(home: Path, rank: int) -> dict[str, Any]:
    for path in home.glob(f"runs/*/workers/heartbeat-{rank}.json"):
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return content
    return {}


def worker_of(process: subprocess.Popen[str], rank: int) -> int | None:
    """The process id of a worker of that command, while there is one."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
        for child in children:
            if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text("utf-8").split("\0"):
                return int(child)
    except OSError:
        pass
    return None
