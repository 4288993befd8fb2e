"""How a node reaches the others: a TCP connection to each, its round trip, bandwidth, and what the other clock says.

A measurement sends the token of the other node's card, then requests of one byte each:
`t` is answered by the clock (float64); `s`, a size (uint64) and so many bytes are answered by `k`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from secrets import token_hex

from fastserve.distributed.preflight import limits
from fastserve.distributed.preflight.messages import Card, Link

Clock = Callable[[], float]

ROUND_TRIPS = 10
FIRST_BYTES = 256 << 10
MOST_BYTES = 32 << 20
TRANSFER_SECONDS = 0.3
_BLOCK = 1 << 16
_TIME, _SIZE = struct.Struct("!d"), struct.Struct("!Q")


class Responder:
    """Answers the other nodes' measurements while the check lasts, on the address that a run would use."""

    def __init__(self, address: str, clock: Clock) -> None:
        self.address, self.clock, self.token = address, clock, token_hex(16)

    def __enter__(self) -> Responder:
        self._server = socket.create_server((self.address, 0), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # ends the thread that accepts
        self._server.close()

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(limits.TRANSFER)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError):
            if _read(connection, len(self.token)) != self.token.encode():
                return
            while request := connection.recv(1):
                if request == b"t":
                    connection.sendall(_TIME.pack(self.clock()))
                elif request == b"s":
                    (size,) = _SIZE.unpack(_read(connection, _SIZE.size))
                    _skip(connection, min(size, MOST_BYTES))
                    connection.sendall(b"k")


def measure(card: Card, clock: Clock) -> Link:
    """The link to the node of `card`, measured in at most limits.CONNECT + limits.TRANSFER seconds or so."""
    place = f"{card.address}:{card.port}"
    try:
        connection = socket.create_connection((card.address, card.port), timeout=limits.CONNECT)
    except TimeoutError:
        return Link(to=card.number, error=f"no answer from {place} within {limits.CONNECT:.0f} s")
    except OSError as error:
        return Link(to=card.number, error=f"{place}: {error.strerror or error}")
    with connection:
        connection.settimeout(limits.TRANSFER)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.sendall(card.token.encode())
            round_trip, ahead = _compare_clocks(connection, clock)
            rate = _bandwidth(connection, round_trip)
        except TimeoutError:
            return Link(to=card.number, error=f"{place} answered, then no more within {limits.TRANSFER:.0f} s")
        except OSError as error:
            return Link(to=card.number, error=f"{place} is another program, or the connection broke: {error}")
    return Link(to=card.number, round_trip_seconds=round_trip, bytes_per_second=rate, clock_ahead_seconds=ahead)


def _compare_clocks(connection: socket.socket, clock: Clock) -> tuple[float, float]:
    """The shortest round trip, and the other clock minus this one, both in seconds.

    The other clock is read in the middle of the round trip, so that the error is at most half of it (as NTP has it).
    """
    best, ahead = float("inf"), 0.0
    for _ in range(ROUND_TRIPS):
        start, here = time.perf_counter(), clock()
        connection.sendall(b"t")
        (there,) = _TIME.unpack(_read(connection, _TIME.size))
        lasted = time.perf_counter() - start
        if lasted < best:
            best, ahead = lasted, there - (here + lasted / 2)
    return best, ahead


def _bandwidth(connection: socket.socket, round_trip: float) -> float:
    """Bytes a second of a transfer that lasts about TRANSFER_SECONDS; a first one finds out how much that is."""
    rate = _send(connection, FIRST_BYTES, round_trip)
    size = int(min(max(rate * TRANSFER_SECONDS, FIRST_BYTES), MOST_BYTES))
    return max(rate, _send(connection, size, round_trip))


def _send(connection: socket.socket, size: int, round_trip: float) -> float:
    start = time.perf_counter()
    connection.sendall(b"s" + _SIZE.pack(size))
    connection.sendall(bytes(size))
    _read(connection, 1)
    return size / max(time.perf_counter() - start - round_trip, 1e-6)


def _read(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        block = connection.recv(size - len(content))
        if not block:
            raise ConnectionError("the connection was closed")
        content += block
    return content


def _skip(connection: socket.socket, size: int) -> None:
    while size:
        block = connection.recv(min(size, _BLOCK))
        if not block:
            raise ConnectionError("the connection was closed")
        size -= len(block)
