"""From an address to streams of bytes: local files, globs, fsspec addresses; gzip and Zstandard undone on the way.

Memory is bounded whatever the file: a stream gives pieces of at most CHUNK bytes, also of a compressed file that
expands a thousandfold.
"""

from __future__ import annotations

import glob
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fastserve.errors import DataError, MissingExtraError, choices

CHUNK = 1 << 20
FORMATS = ("csv", "tsv", "jsonl", "json", "parquet", "txt")
COMPRESSIONS = ("gz", "zst")
SYNONYMS = {"ndjson": "jsonl", "tab": "tsv", "pq": "parquet", "text": "txt", "zstd": "zst"}
EXPECTED = f"expected {', '.join(FORMATS)}, also followed by .gz or .zst"


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its address as the user would write it, its format, and its compression ('' for none).

    format is "hub" for the name of a data set on the Hugging Face hub.
    """

    address: str
    format: str
    compression: str = ""

    @property
    def is_remote(self) -> bool:
        return "://" in self.address


def find_sources(address: str) -> list[Source]:
    """The files behind an address, in sorted order, at least one. DataError says what is wrong and what is near."""
    if "://" in address:
        return [_source(path) for path in _remote_paths(address)]
    path = Path(address).expanduser()
    if path.is_file():
        return [_source(str(path))]
    if path.is_dir():
        raise DataError(f"{address} is a folder; name a file in it or a glob. {_folder_content(path)}")
    if path.exists():
        raise DataError(f"{address} is not a regular file: FastServe reads its data more than once; save it to a file")
    if glob.has_magic(address):
        found = [name for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise DataError(f"no file matches {address}. {_folder_content(path.parent)}")
        return [_source(name) for name in found]
    if _format_of(path.name)[0] is None and _may_be_hub_name(address):
        return [Source(address, "hub")]
    raise DataError(f"there is no file {address}: {choices(path.name, _names_in(path.parent))}")


def _may_be_hub_name(address: str) -> bool:
    """`name`, `owner/name`, either with `:split`; not something that exists as a folder here."""
    owner, _, name = address.rpartition("/")
    plain = name.partition(":")[0].replace("-", "").replace("_", "").replace(".", "")
    return plain.isalnum() and "/" not in owner and not owner.startswith((".", "~")) and not Path(owner or "?").is_dir()


def _names_in(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir() if path.is_file() and _format_of(path.name)[0]]
    except OSError:
        return []


def _folder_content(folder: Path) -> str:
    names = sorted(_names_in(folder))
    return f"It has {', '.join(names[:10])}" if names else "It has no data file"


def _format_of(name: str) -> tuple[str | None, str]:
    """('tsv', 'gz') of 'reviews.tsv.gz'; (None, ...) of an unknown suffix."""
    suffixes = [suffix[1:].lower() for suffix in PurePosixPath(name).suffixes]
    suffixes = [SYNONYMS.get(suffix, suffix) for suffix in suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None), compression


def _source(address: str) -> Source:
    format_, compression = _format_of(address.rpartition("/")[2])
    if format_ is None:
        raise DataError(f"{address}: its suffix names no format; {EXPECTED}")
    if format_ == "parquet" and compression:
        raise DataError(f"{address}: parquet compresses inside; unpack the .{compression} first")
    return Source(address, format_, compression)


def _remote_paths(address: str) -> list[str]:
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError(f"reading {address}", "remote") from None
    try:
        system, path = fsspec.core.url_to_fs(address)
        if not glob.has_magic(path):
            return [address]
        found = [system.unstrip_protocol(name) for name in sorted(system.glob(path))]
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{address} cannot be reached: {error}") from None
    if not found:
        raise DataError(f"no file matches {address}")
    return found


def open_file(source: Source) -> IO[bytes]:
    """The file as it lies there, compression not undone; the caller closes it."""
    try:
        if source.is_remote:
            import fsspec

            opened: Any = fsspec.open(source.address, "rb").open()
            return opened  # type: ignore[no-any-return]  # fsspec has no types
        return open(source.address, "rb")
    except (OSError, ImportError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{source.address} cannot be read: {reason}") from None


def read_chunks(source: Source) -> Iterator[bytes]:
    """The unpacked content in pieces of at most CHUNK bytes. DataError on a damaged or cut archive."""
    with open_file(source) as file:
        try:
            if source.compression == "gz":
                yield from _gunzip(file, source.address)
            elif source.compression == "zst":
                yield from _unzstd(file, source.address)
            else:
                while chunk := file.read(CHUNK):
                    yield chunk
        except OSError as error:
            raise DataError(f"{source.address} cannot be read: {error.strerror or error}") from None


def _gunzip(file: IO[bytes], address: str) -> Iterator[bytes]:
    """zlib itself: the gzip module takes half as long again. Several members end to end are one content."""
    packed = file.read(CHUNK // 4)
    while packed:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            try:
                piece = member.decompress(packed, CHUNK)
            except zlib.error as error:
                raise DataError(f"{address} is not a whole gzip file: {error}; make it again") from None
            if piece:
                yield piece
            packed = member.unconsumed_tail or (b"" if member.eof else file.read(CHUNK // 4))
            if not packed and not member.eof and not piece:
                raise DataError(f"{address} is cut short: the gzip data ends in the middle; copy or make it again")
        packed = (member.unused_data or file.read(CHUNK // 4)).lstrip(b"\0")  # some writers pad with zeros


def _unzstd(file: IO[bytes], address: str) -> Iterator[bytes]:
    import zstandard

    try:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)
        while piece := reader.read(CHUNK):
            yield piece
    except zstandard.ZstdError as error:
        raise DataError(f"{address} is not a whole Zstandard file: {error}; make it again") from None
    if not _frames_are_whole(file):
        raise DataError(f"{address} is cut short: the Zstandard data ends in the middle; copy or make it again")


def _frames_are_whole(file: IO[bytes]) -> bool:
    """Walk the block headers (RFC 8878, 3.1.1): the reader above ends silently in the middle of a frame."""
    import zstandard

    size = file.seek(0, 2)
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(18)
        if len(head) >= 8 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:  # a skippable frame
            position += 8 + int.from_bytes(head[4:8], "little")
            continue
        try:
            position += zstandard.frame_header_size(head)
            checksum = 4 if zstandard.get_frame_parameters(head).has_checksum else 0
        except zstandard.ZstdError:
            return False
        last = False
        while not last:
            file.seek(position)
            header = int.from_bytes(file.read(3), "little")
            last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
            position += 3 + (1 if kind == 1 else length)
            if position > size or (header == 0 and position >= size):
                return False
        position += checksum
    return position == size
