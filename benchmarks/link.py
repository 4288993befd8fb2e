"""A slow link of a host in `hosts.py`: limited bandwidth by `tc` (tbf), latency by a process that holds frames back.

Latency could be `tc netem`, but many kernels are built without it, and a link must be the same everywhere. So the two
ends are taps instead of a veth pair, and `relay`, this file run as a program, carries the frames between them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass

LARGEST_FRAME = 1 << 17  # bytes; the kernel hands over up to 64 KiB at once and cuts it to packets later
BURST_BYTES = 32 << 10
QUEUE_SECONDS = 0.4

# linux/if_tun.h
_SET_INTERFACE, _SET_OFFLOAD = 0x400454CA, 0x400454D0
_TAP, _NO_PACKET_INFO, _OFFLOAD_HEADER = 0x0002, 0x1000, 0x4000
_CHECKSUM, _SEGMENT_4, _SEGMENT_6 = 0x01, 0x02, 0x04


@dataclass(frozen=True, slots=True)
class Link:
    """What connects a host to the others. A packet between two hosts passes two links.

    megabits: a second, each way, None without a limit; delay_seconds: how long a packet that leaves the host is under
    way, so that a round trip between two hosts with the same link lasts twice as long.
    """

    megabits: float | None = None
    delay_seconds: float = 0.0

    def shaping(self, interface: str) -> list[str]:
        """The words behind `tc` that limit what leaves by `interface`."""
        limit = f"tbf rate {self.megabits}mbit burst {BURST_BYTES} latency {QUEUE_SECONDS}s"
        return f"qdisc add dev {interface} root {limit}".split()


def open_tap(name: str) -> int:
    """A new tap interface of this namespace, which lives as long as the descriptor that is returned."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    request = struct.pack("16sH22x", name.encode(), _TAP | _NO_PACKET_INFO | _OFFLOAD_HEADER)
    fcntl.ioctl(descriptor, _SET_INTERFACE, request)
    fcntl.ioctl(descriptor, _SET_OFFLOAD, _CHECKSUM | _SEGMENT_4 | _SEGMENT_6)
    return descriptor


class Relay:
    """The process behind a link with latency; it ends with whoever started it, at the latest."""

    def __init__(self, host: int, switch: int, delay_seconds: float) -> None:
        """host, switch: descriptors of the two taps, which now belong to the relay."""
        ends, self._alive = os.pipe()
        descriptors = (host, switch, ends)
        words = [sys.executable, "-I", "-S", __file__, *map(str, descriptors), str(delay_seconds)]
        self._process = subprocess.Popen(words, pass_fds=descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def stop(self) -> None:
        os.close(self._alive)
        self._process.wait(timeout=10)


def relay(host: int, switch: int, ends: int, delay_seconds: float) -> None:
    """Carry frames from `host` to `switch` after `delay_seconds`, and back at once, until `ends` is closed."""
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select((host, switch, ends), (), (), timeout)
        if ends in ready:
            return
        if host in ready:
            waiting.append((time.monotonic() + delay_seconds, os.read(host, LARGEST_FRAME)))
        if switch in ready:
            _write(host, os.read(switch, LARGEST_FRAME))
        while waiting and waiting[0][0] <= time.monotonic():
            _write(switch, waiting.popleft()[1])


def _write(descriptor: int, frame: bytes) -> None:
    with contextlib.suppress(OSError):  # an interface that is down loses frames, as a wire would
        os.write(descriptor, frame)


if __name__ == "__main__":
    relay(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
