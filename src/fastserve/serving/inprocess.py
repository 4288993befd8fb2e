"""A server in a thread of this process, for tests and notebooks: no supervisor, no second process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastserve.serving.events import Events
from fastserve.serving.keys import read_key_file
from fastserve.serving.listener import address, bind
from fastserve.serving.model import Named
from fastserve.serving.node import Node
from fastserve.serving.options import ServeOptions
from fastserve.serving.source import ModelSource


@contextlib.contextmanager
def running(models: Sequence[Named], options: ServeOptions, source: ModelSource) -> Iterator[tuple[str, Node]]:
    """Serve `models` while the block runs: its URL, and the node (whose methods belong to the server's thread).

    What keeps a model from serving is raised here.
    """
    keys = read_key_file(Path(options.api_key_file)) if options.api_key_file else []
    loop = asyncio.new_event_loop()
    listening = bind(options.host, options.port)
    thread = threading.Thread(target=loop.run_forever, name="server", daemon=True)
    thread.start()

    async def start() -> Node:
        node = Node(models, options, source, keys=keys, events=Events(level=options.log_level))
        await node.load()
        node.open(listening)
        return node

    try:
        node = asyncio.run_coroutine_threadsafe(start(), loop).result(options.start_seconds)
        try:
            yield address(listening), node
        finally:
            asyncio.run_coroutine_threadsafe(node.close(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        listening.close()
