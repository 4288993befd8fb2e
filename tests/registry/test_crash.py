"""What is left after kill -9, a full disk, and several writers at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fakes import save_model

from fastserve.errors import StorageError
from fastserve.registry import Registry

HERE = Path(__file__).parent


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=HERE, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_killed_writer_never_leaves_half_a_version(tmp_path: Path) -> None:
    save_model(tmp_path / "m", size=20_000)
    words = [str(HERE / "crash_loop.py"), str(tmp_path / "home"), str(tmp_path / "m"), "40", "0"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 4  # the children got somewhere before they were killed
    assert all(not faults for faults in Registry(tmp_path / "home").verify().values())


def test_writers_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    save_model(tmp_path / "m")
    code = """
import sys; from pathlib import Path; from fastserve.registry import Registry
for _ in range(5):
    print(Registry(Path(sys.argv[1])).publish(sys.argv[2], "m").number)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "home"), str(tmp_path / "m")]
    writers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    numbers = [int(line) for writer in writers for line in writer.communicate(timeout=60)[0].split()]
    assert sorted(numbers) == list(range(1, 16))
    registry = Registry(tmp_path / "home")
    assert [version.number for version in registry.versions("m")] == list(range(1, 16))
    assert all(not faults for faults in registry.verify().values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_leaves_what_was(tmp_path: Path, small_disk: Path) -> None:
    save_model(tmp_path / "small", size=1_000)
    save_model(tmp_path / "large", size=1_000_000)
    registry = Registry(small_disk / "home")
    registry.publish(tmp_path / "small", "m")
    registry.promote("m@1")
    with pytest.raises(StorageError, match="disk is full"):
        registry.publish(tmp_path / "large", "m")
    assert registry.verify() == {"m@1": []}
    assert registry.find("m").number == 1
    assert not list((small_disk / "home" / "models").glob(".tmp-*"))
    assert registry.publish(tmp_path / "small", "m").number == 2


def test_a_size_limit_is_told_and_leaves_what_was(tmp_path: Path) -> None:
    save_model(tmp_path / "large", size=500_000)
    code = """
import resource, sys; from pathlib import Path
from fastserve.errors import StorageError; from fastserve.registry import Registry
registry = Registry(Path(sys.argv[1])); registry.publish(sys.argv[2], "m")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for work in (lambda: registry.publish(sys.argv[2], "m"), lambda: registry.export("m", sys.argv[1] + "/m.tar.gz")):
    try:
        work()
    except StorageError as error:
        print(error)
"""
    done = run(code, str(tmp_path / "home"), str(tmp_path / "large"))
    assert done.stdout.count("the disk is full") == 2, done.stderr
    assert Registry(tmp_path / "home").verify() == {"m@1": []}
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["models"]
    assert sorted(path.name for path in (tmp_path / "home" / "models").iterdir()) == ["m"]
