"""A version as one file: the same bytes each time, and nothing trusted on the way back."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from registry_fakes import save_model

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.format import NetworkSpec
from fastserve.errors import BundleError, ConfigError, DataError
from fastserve.registry import Registry
from fastserve.registry.archive import read_archive


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "home")
    save_model(tmp_path / "m", size=3_000)
    registry.publish(tmp_path / "m", "m")
    return registry


def rewritten(path: Path, change: Callable[[tarfile.TarFile], None], *, level: int = 1) -> Path:
    """The tar.gz `path` with what `change` adds at its end."""
    content = io.BytesIO(gzip.decompress(path.read_bytes()))
    with tarfile.open(fileobj=content, mode="a") as archive:
        change(archive)
    target = path.with_name("changed.tar.gz")
    target.write_bytes(gzip.compress(content.getvalue(), level))
    return target


def member(name: str, content: bytes = b"x", **fields: object) -> Callable[[tarfile.TarFile], None]:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for field, value in fields.items():
        setattr(header, field, value)
    return lambda archive: archive.addfile(header, io.BytesIO(content))


@pytest.mark.parametrize("suffix", [".tar.zst", ".tar.gz", ".tgz"])
def test_export_and_import(registry: Registry, tmp_path: Path, suffix: str) -> None:
    file = registry.export("m", tmp_path / f"one{suffix}")
    elsewhere = Registry(tmp_path / "elsewhere")
    version = elsewhere.import_(file)
    assert version.reference == "m@1"
    assert Bundle.load(version.path).manifest == Bundle.load(tmp_path / "m").manifest
    assert elsewhere.verify() == {"m@1": []}
    assert elsewhere.import_(file, name="other").reference == "other@1"
    assert elsewhere.import_(file).reference == "m@2"


@pytest.mark.parametrize("suffix", [".tar.zst", ".tar.gz"])
def test_the_same_version_gives_the_same_bytes(registry: Registry, tmp_path: Path, suffix: str) -> None:
    first = registry.export("m", tmp_path / f"first{suffix}").read_bytes()
    other = Registry(tmp_path / "elsewhere")
    other.import_(tmp_path / f"first{suffix}")
    assert other.export("m@1", tmp_path / f"second{suffix}").read_bytes() == first


def test_a_model_that_names_own_code_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(tmp_path / "m", network=NetworkSpec(name="mine:Network"))
    registry = Registry(tmp_path / "home")
    registry.publish(tmp_path / "m", "m")
    registry.import_(registry.export("m", tmp_path / "m.tar.gz"))
    assert "mine:Network" in caplog.text


def test_another_suffix_is_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.tar\.zst or"):
        registry.export("m", tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


def test_a_damaged_version_is_not_exported(registry: Registry, tmp_path: Path) -> None:
    (registry.resolve("m") / "words.txt").write_text("坏\n", "utf-8")
    with pytest.raises(BundleError, match=r"words\.txt"):
        registry.export("m", tmp_path / "m.tar.gz")
    assert not (tmp_path / "m.tar.gz").exists()


@pytest.mark.parametrize(
    "change",
    [
        member("/etc/passwd"),
        member("m/../../evil"),
        member("m/a/../evil"),
        member("../m/evil"),
        member("m//evil"),
        member("m"),
        member("m/a\\b"),
        member(".tmp/evil"),
        member("other/fastserve.json"),
        member("m/link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("m/hard", b"", type=tarfile.LNKTYPE, linkname="m/fastserve.json"),
        member("m/device", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("m/pipe", b"", type=tarfile.FIFOTYPE),
        member("m/folder", b"", type=tarfile.DIRTYPE),
        member("m/fastserve.json"),
        member("m/fastserve.json/below"),
        member("m/stray.txt"),
        member("m/" + "x" * 250),
    ],
)
def test_what_is_not_a_plain_listed_file_is_refused(
    registry: Registry, tmp_path: Path, change: Callable[[tarfile.TarFile], None]
) -> None:
    file = rewritten(registry.export("m", tmp_path / "m.tar.gz"), change)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=r"changed\.tar\.gz"):
        registry.import_(file)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_bomb_is_refused_while_it_unpacks(registry: Registry, tmp_path: Path) -> None:
    file = rewritten(registry.export("m", tmp_path / "m.tar.gz"), member("m/big", bytes(30 << 20)))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match="unpacks to over 5,000,000 bytes"):
        registry.import_(file, limit_bytes=5_000_000)
    assert len(registry.versions("m")) == 1


def test_a_bomb_in_a_header_is_refused(registry: Registry, tmp_path: Path) -> None:
    """tarfile keeps extended headers in memory whole."""

    def change(archive: tarfile.TarFile) -> None:
        header = tarfile.TarInfo("m/x")
        header.pax_headers = {"comment": "x" * (20 << 20)}
        archive.addfile(header, io.BytesIO())

    file = rewritten(registry.export("m", tmp_path / "m.tar.gz"), change)
    with pytest.raises(BundleError, match="header of over"):
        registry.import_(file)


def test_too_many_files_are_refused(registry: Registry, tmp_path: Path) -> None:
    file = registry.export("m", tmp_path / "m.tar.gz")
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="over 2 files"):
        read_archive(file, tmp_path / "out", limit_files=2)


@pytest.mark.parametrize("suffix", [".tar.zst", ".tar.gz"])
def test_any_damage_is_found_and_nothing_appears(registry: Registry, tmp_path: Path, suffix: str) -> None:
    file = registry.export("m", tmp_path / f"m{suffix}")
    content = file.read_bytes()
    elsewhere = Registry(tmp_path / "elsewhere")
    damaged = [content[:keep] for keep in range(0, len(content) - 40, len(content) // 25)]
    for position in range(30, len(content) - 40, len(content) // 25):
        damaged.append(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
    for wrong in damaged:
        file.write_bytes(wrong)
        with pytest.raises(BundleError):
            elsewhere.import_(file)
    assert elsewhere.names() == []


def test_what_is_no_archive_is_told(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"PK\x03\x04 not ours")
    with pytest.raises(BundleError, match="no archive of FastServe"):
        registry.import_(tmp_path / "x.tar.gz")
    (tmp_path / "y.tar.zst").write_bytes(zstandard.compress(b"no tar inside of it" * 60))
    with pytest.raises(BundleError, match=r"y\.tar\.zst"):
        registry.import_(tmp_path / "y.tar.zst")
    with pytest.raises(DataError, match="cannot be read"):
        registry.import_(tmp_path / "nothing.tar.zst")
    with pytest.raises(ConfigError, match="cannot be called"):
        registry.import_(tmp_path / "x.tar.gz", name="../x")
