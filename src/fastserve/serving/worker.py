"""A worker process: `python -m fastserve.serving.worker DESCRIPTOR`, started by the supervisor and by nobody else.

It reads its order from the inherited descriptor, loads, says that it is ready, and serves until it is told to drain or
the supervisor is gone. It beats once a second or faster, so that a worker whose event loop stands still is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import signal
import socket
import sys

import uvloop

from fastserve.errors import FastServeError
from fastserve.plugins import import_object
from fastserve.serving.board import Board
from fastserve.serving.channel import DUMP_SIGNAL, Channel, WorkerOrder
from fastserve.serving.events import Events
from fastserve.serving.node import Node


class Worker:
    """Carries out one order."""

    def __init__(self, order: WorkerOrder, channel: Channel) -> None:
        self.order, self.channel = order, channel
        self.events = Events(worker=order.worker, level=order.options.log_level)
        self._let_in, self._drain = asyncio.Event(), asyncio.Event()

    async def run(self) -> int:
        """The exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain.set)
        node = self._make_node()
        tasks = [loop.create_task(self._beat(node)), loop.create_task(self._listen())]
        try:
            return await self._serve(node)
        finally:
            for task in tasks:
                task.cancel()
            self.channel.close()

    def _make_node(self) -> Node:
        order = self.order
        names = [model.name for model in order.models]
        board = Board(names, workers=order.options.workers, keys=len(order.keys), descriptor=order.board)
        source = import_object(order.source)(order.options)
        node = Node(
            order.models, order.options, source, keys=order.keys, board=board, worker=order.worker, events=self.events
        )
        node.on_swap = lambda: self.channel.send("swapped", folders=node.folders)
        return node

    async def _serve(self, node: Node) -> int:
        try:
            await node.load(self.order.fallback)
        except FastServeError as error:
            self.channel.send("failed", message=str(error), exit_code=error.exit_code)
            with contextlib.suppress(OSError):
                await self.channel.writer.drain()
            return error.exit_code
        gc.collect()
        gc.freeze()  # the models stay: looking through their objects again and again would hold up answers
        self.channel.send("ready", folders=node.folders)
        await self._let_in.wait()
        node.open(socket.socket(fileno=self.order.listening))
        await self._drain.wait()
        await node.drain()
        return 0

    async def _beat(self, node: Node) -> None:
        while True:
            self.channel.send("beat", stalled=node.app.stalled_seconds)
            await asyncio.sleep(min(1.0, self.order.options.hang_seconds / 4))

    async def _listen(self) -> None:
        """The supervisor says two things: open, when it has left the door; and drain, as its own end says too."""
        while (message := await self.channel.receive()) is not None and message["event"] != "drain":
            self._let_in.set()
        self._let_in.set()
        self._drain.set()


async def _main(end: socket.socket) -> int:
    channel = await Channel.open(end)
    line = await channel.reader.readline()
    if not line:
        return 1  # the supervisor left before it said what to do
    return await Worker(WorkerOrder.model_validate_json(line), channel).run()


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; the supervisor decides
    faulthandler.enable()
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    return uvloop.run(_main(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    sys.exit(main())
