"""Who may ask: API keys, kept only as SHA-256, and how often each may ask."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastserve.errors import ConfigError
from fastserve.serving.messages import Headers, HttpError

_SHORTEST = 16


@dataclass(frozen=True, slots=True)
class Key:
    """A key's name, for logs, and the SHA-256 of the key in hexadecimal."""

    name: str
    sha256: str


def read_key_file(path: Path) -> list[Key]:
    """One `KEY` or `NAME:KEY` a line; empty lines and lines that begin with # say nothing."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the API key file {path} cannot be read: {error}") from None
    keys = [
        _read_line(path, number, line.strip()) for number, line in enumerate(lines, start=1) if _says_something(line)
    ]
    if not keys:
        raise ConfigError(f"the API key file {path} holds no key: expected one `KEY` or `NAME:KEY` a line")
    return keys


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _read_line(path: Path, number: int, line: str) -> Key:
    name, separator, key = line.rpartition(":")
    if len(key) < _SHORTEST or not key.isascii() or any(character.isspace() for character in key):
        raise ConfigError(
            f"{path} line {number}: a key must have at least {_SHORTEST} ASCII characters and no spaces; "
            "`openssl rand -hex 24` makes one"
        )
    return Key(name if separator else f"key-{number}", hashlib.sha256(key.encode("ascii")).hexdigest())


class Gate:
    """Lets requests with a known key in, as often as agreed.

    rate: requests a second of one key, None for no limit; burst: how many at once. clock: nanoseconds that all
    processes share. state: int64 (keys,), shared by all workers: the time at which the key's allowance is whole again
    (the generic cell rate algorithm, which needs that one number).
    """

    def __init__(
        self,
        keys: Sequence[Key],
        *,
        rate: float | None = None,
        burst: int = 20,
        state: memoryview | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._names = [key.name for key in keys]
        self._digests = [bytes.fromhex(key.sha256) for key in keys]
        self._rate, self._burst, self._clock = rate, burst, clock
        self._state = state if state is not None else memoryview(bytearray(8 * max(len(keys), 1))).cast("q")

    def check(self, headers: Headers) -> str:
        """The name of the key ("" where none is needed). Raises 401 without a known key, 429 over its limit."""
        if not self._digests:
            return ""
        given = _given_key(headers)
        index = self._find(given) if given else None
        if index is None:
            message = "the API key is not known" if given else "an API key is needed: Authorization: Bearer KEY"
            raise HttpError(401, message, headers=(("www-authenticate", 'Basic realm="FastServe", Bearer'),))
        if self._rate is not None:
            self._charge(index, self._rate)
        return self._names[index]

    def _find(self, given: bytes) -> int | None:
        """Compares with every key in constant time, so that the time taken tells nothing."""
        digest = hashlib.sha256(given).digest()
        found = None
        for index, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = index
        return found

    def _charge(self, index: int, rate: float) -> None:
        now = self._clock()
        interval = int(1e9 / rate)
        whole_at = max(self._state[index], now)
        late = whole_at + interval - now - interval * self._burst
        if late > 0:
            raise HttpError(429, f"this key may ask {rate:g} times a second", retry_after=max(1, math.ceil(late / 1e9)))
        self._state[index] = whole_at + interval


def _given_key(headers: Headers) -> bytes | None:
    """From `Authorization: Bearer KEY`, from the password of a browser's `Basic` dialog, or from `X-API-Key`."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    value = value.strip()
    if scheme.lower() == b"bearer" and value:
        return value
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2] or None
        except binascii.Error:
            return None
    return headers.get(b"x-api-key")
