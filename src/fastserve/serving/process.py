"""One worker process as the supervisor sees it: started, listened to, and judged when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from fastserve.serving.channel import DUMP_SIGNAL, Channel, WorkerOrder

_STACK_SECONDS = 0.5  # time to write the stacks before the process is killed


class WorkerProcess:
    """Starts a worker with `order` and follows it. Times are monotonic seconds."""

    def __init__(self, order: WorkerOrder, on_event: Callable[[WorkerProcess, dict[str, Any]], None]) -> None:
        self.order, self.on_event = order, on_event
        self.started = self.last_beat = time.monotonic()
        self.ready_since: float | None = None
        self.stalled = 0.0
        self.failure: str | None = None
        self.failure_code = 1
        self.hung: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None

    @property
    def is_ready(self) -> bool:
        return self.ready_since is not None

    async def run(self) -> int:
        """Start, listen until it has ended, and return its exit code (negative: the signal that ended it)."""
        ours, theirs = socket.socketpair()
        inherited = (theirs.fileno(), self.order.listening, self.order.board)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastserve.serving.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            env=_environment(self.order.options.threads),
        )
        theirs.close()
        ours.setblocking(False)
        self._channel = await Channel.open(ours)
        self._channel.writer.write(self.order.model_dump_json().encode("utf-8") + b"\n")
        while (message := await self._channel.receive()) is not None:
            self._note(message)
            self.on_event(self, message)
        self.ready_since = None
        self._channel.close()
        return await asyncio.get_running_loop().run_in_executor(None, self._reap)

    def _note(self, message: dict[str, Any]) -> None:
        self.last_beat = time.monotonic()
        match message["event"]:
            case "beat":
                self.stalled = message["stalled"]
            case "ready":
                self.ready_since = self.last_beat
            case "failed":
                self.failure, self.failure_code = message["message"], message["exit_code"]

    def _reap(self) -> int:
        """Wait for the process, which closed its channel; one that stays all the same is killed."""
        process = self._process
        if process is None:
            return 1
        try:
            return process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def overdue(self, now: float) -> str | None:
        """Why this worker is to be given up, or None."""
        options = self.order.options
        if not self.is_ready:
            late = now - self.started > options.start_seconds
            return f"it was not ready after {options.start_seconds:g} s" if late else None
        if now - self.last_beat > options.hang_seconds:
            return f"its event loop has stood still for {now - self.last_beat:.1f} s"
        if self.stalled > options.hang_seconds:
            return f"its model has not finished anything for {self.stalled:.1f} s"
        return None

    async def give_up(self, reason: str) -> None:
        """Have it write its stacks, then kill it."""
        if self.hung is None and self._process is not None:
            self.hung = reason
            self._process.send_signal(DUMP_SIGNAL)
            await asyncio.sleep(_STACK_SECONDS)
            self._process.kill()

    def let_in(self) -> None:
        """Have it take connections, which nobody else takes from now on."""
        if self._channel is not None:
            self._channel.send("open")

    def drain(self) -> None:
        """Ask it to finish; one that is still loading has nothing to finish."""
        if self._channel is not None and self.is_ready:
            self._channel.send("drain")
        else:
            self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def verdict(self, code: int) -> str:
        """How it ended, in words."""
        if self.failure is not None:
            return self.failure
        if self.hung is not None:
            return f"the worker was killed: {self.hung} (its stacks are in the log)"
        if code < 0:
            return f"the worker was ended by {signal.Signals(-code).name}"
        return f"the worker ended with exit code {code}"


def _environment(threads: int) -> dict[str, str]:
    """Computing threads that sleep while they wait, and no more of them than asked for."""
    return {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
