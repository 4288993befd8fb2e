"""The README's commands are run as they stand there, in its order, in one folder; only the port is a free one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
README_PORT = "8000"
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", path / "examples")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_readme_runs(number: int, folder: Path) -> None:
    kind, code = BLOCKS[number]
    named = re.match(r"# (\w+\.py)\n", code)
    if named:
        (folder / named[1]).write_text(code, "utf-8")
        return
    environment = {
        **os.environ,
        "FASTSERVE_HOME": str(folder / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    code = code.replace(README_PORT, str(free_port()))
    command = ["bash", "-euo", "pipefail", "-c", code] if kind == "sh" else [sys.executable, "-c", code]
    found = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert found.returncode == 0, f"{code}\n{found.stdout}\n{found.stderr}"


@pytest.mark.heavy
def test_the_main_job_runs_as_the_readme_says(tmp_path: Path) -> None:
    assert "\n    ./scripts/demo\n" in README
    environment = {**os.environ, "FASTSERVE_HOME": str(tmp_path), "PORT": str(free_port())}
    found = subprocess.run(
        ["./scripts/demo"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert found.returncode == 0, found.stderr
    assert re.search(r"positive +0\.\d+ +物流很快", found.stdout), found.stdout
    assert (tmp_path / "evaluation" / "report.html").is_file()


def test_the_map_names_every_folder() -> None:
    for path in (ROOT / "src" / "fastserve").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"| `{path.name}` |" in README, f"the README's map lacks {path.name}"
