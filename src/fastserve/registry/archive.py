"""A version as one file, and back.

The archive is a tar file, compressed by zstandard or gzip, with one folder that is called like the model. The same
version always gives the same bytes: sorted names, no times, no owners. Reading trusts nothing: only plain files with
plain names, limits on number and size that hold while decompressing, and the checksums before the version appears.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol, cast

from fastserve import files
from fastserve.errors import BundleError, ConfigError, DataError
from fastserve.registry.names import is_name

SUFFIXES = {".tar.zst": "zstandard", ".tar.gz": "gzip", ".tgz": "gzip"}
LIMIT_BYTES = 64 << 30
LIMIT_FILES = 10_000
_ZSTANDARD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTANDARD_LEVEL = 6
_GZIP_LEVEL = 1  # weights shrink as little at higher levels, which take longer
_HEADER_BYTES = 1 << 20
"""More than any honest header takes; tarfile keeps a header in memory whole."""
_COPY_BYTES = 1 << 20


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


def write_archive(folder: Path, name: str, target: Path) -> None:
    """Write the files of model folder `folder` under `name`/ into `target`, atomically. The suffix says how."""
    kind = next((kind for suffix, kind in SUFFIXES.items() if target.name.endswith(suffix)), None)
    if kind is None:
        raise ConfigError(f"{target}: an archive ends in {' or '.join(SUFFIXES)}")
    names = sorted([*files.read_sums(folder), files.SUMS])
    with (
        files.new_file(target) as file,
        _compressor(file, kind) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for member in names:
            with open(folder / member, "rb") as content:
                archive.addfile(_header(f"{name}/{member}", (folder / member).stat().st_size), content)


def _header(name: str, size: int) -> tarfile.TarInfo:
    """A header with nothing of this machine in it: no time, no owner."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header


@contextlib.contextmanager
def _compressor(file: IO[bytes], kind: str) -> Iterator[IO[bytes]]:
    if kind == "gzip":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0) as stream:
            yield cast(IO[bytes], stream)
    else:
        import zstandard

        with zstandard.ZstdCompressor(level=_ZSTANDARD_LEVEL).stream_writer(file, closefd=False) as writer:
            yield cast(IO[bytes], writer)


class _Metered:
    """Passes bytes on up to an allowance, which the reader renews before each part that it expects."""

    def __init__(self, source: Readable, path: Path, limit_bytes: int) -> None:
        self.source = source
        self.path = path
        self.limit_bytes = limit_bytes
        self.total = 0
        self.allowance = _HEADER_BYTES

    def allow(self, size: int) -> None:
        self.allowance = size + _HEADER_BYTES

    def read(self, size: int = -1, /) -> bytes:
        data = self.source.read(size)
        self.total += len(data)
        self.allowance -= len(data)
        if self.total > self.limit_bytes:
            raise BundleError(f"{self.path} unpacks to over {self.limit_bytes:,} bytes and is refused")
        if self.allowance < 0:
            raise BundleError(f"{self.path} has a header of over {_HEADER_BYTES:,} bytes and is refused")
        return data


def read_archive(path: Path, target: Path, *, limit_bytes: int = LIMIT_BYTES, limit_files: int = LIMIT_FILES) -> str:
    """Unpack the archive `path` into the empty folder `target`; the model's name.

    BundleError for what is not an archive of FastServe, is damaged, or is refused. What it holds is not verified here.
    """
    with _decompressed(path) as source, _damage(path):
        metered = _Metered(source, path, limit_bytes)
        with tarfile.open(fileobj=cast(IO[bytes], metered), mode="r|") as archive:
            return _unpack(archive, metered, target, limit_files)


def _unpack(archive: tarfile.TarFile, metered: _Metered, target: Path, limit_files: int) -> str:
    roots: set[str] = set()
    count = 0
    while (member := archive.next()) is not None:
        root, name = _checked(member, metered.path)
        roots.add(root)
        count += 1
        if len(roots) > 1 or count > limit_files:
            what = f"over {limit_files:,} files" if count > limit_files else f"several folders: {sorted(roots)}"
            raise BundleError(f"{metered.path} holds {what}; expected the files of one model")
        metered.allow(member.size)
        _write(archive, member, target / name, metered.path)
        metered.allow(0)
    if not roots:
        raise BundleError(f"{metered.path} is empty; expected the files of one model")
    return roots.pop()


def _checked(member: tarfile.TarInfo, path: Path) -> tuple[str, str]:
    """The model's name and the file's name of a member that may be unpacked."""
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    root, _, name = member.name.partition("/")
    parts = name.split("/")
    bad = any(part in ("", ".", "..") or "\\" in part or "\0" in part or len(part) > 200 for part in parts)
    if not plain or bad or not is_name(root) or member.size < 0:
        raise BundleError(
            f"{path}: '{member.name[:200]}' is refused: expected plain files at NAME/FILE, no links, devices or '..'"
        )
    return root, name


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, path: Path) -> None:
    content = archive.extractfile(member)
    if content is None:
        raise BundleError(f"{path}: '{member.name}' has no content")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            shutil.copyfileobj(content, file, _COPY_BYTES)
    except (FileExistsError, NotADirectoryError):
        raise BundleError(f"{path}: '{member.name}' is in it twice; it is refused") from None


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what the decompressors and tarfile say about damage into a sentence."""
    import zstandard

    try:
        yield
    except (tarfile.TarError, zstandard.ZstdError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise BundleError(f"{path} is damaged or cut short: {error}; export or copy it again") from error


@contextlib.contextmanager
def _decompressed(path: Path) -> Iterator[Readable]:
    """The tar stream in `path`; how it is compressed is seen from its first bytes, whatever its name."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(_GZIP_MAGIC):
            yield gzip.GzipFile(fileobj=file, mode="rb")
        elif magic == _ZSTANDARD_MAGIC:
            import zstandard

            yield zstandard.ZstdDecompressor().stream_reader(file, closefd=False)
        else:
            raise BundleError(f"{path} is no archive of FastServe: expected {' or '.join(SUFFIXES)}")
