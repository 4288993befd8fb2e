"""The public door of routing: take the port, watch the servers, hand requests on until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fastserve import log
from fastserve.errors import ConfigError
from fastserve.serving.connection import Connections
from fastserve.serving.events import Events
from fastserve.serving.keys import Gate, read_key_file
from fastserve.serving.listener import Listener, address, bind
from fastserve.serving.node import http_limits
from fastserve.serving.options import HttpOptions
from fastserve.serving.routing.replica import Replica
from fastserve.serving.routing.router import Router
from fastserve.serving.serve import check_exposure


def route(servers: Sequence[str], options: HttpOptions) -> int:
    """Answer on `options.port` with what the servers at these addresses answer, until a signal; the exit code.

    ConfigError for an address that is none or is given twice; ServingError where the port is taken.
    """
    replicas = [Replica(server) for server in servers]
    names = [replica.name for replica in replicas]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"the server {twice} is given twice: each once")
    check_exposure(options)
    keys = read_key_file(Path(options.api_key_file)) if options.api_key_file else []
    gate = Gate(keys, rate=options.requests_per_second, burst=options.burst)
    listening = bind(options.host, options.port)
    try:
        log.say(f"{address(listening)} routes to {', '.join(names)} (Ctrl+C ends it)")
        return asyncio.run(run(Router(replicas, gate, Events(level=options.log_level)), listening, options))
    finally:
        listening.close()


class Servers(Protocol):
    """Servers that live and end with their router. code: why they ended, if they did by themselves."""

    code: int

    def begin(self, stop: asyncio.Event) -> None:
        """Start them; `stop` is set where that is in vain."""
        ...

    async def finish(self) -> None: ...


async def run(router: Router, listening: socket.socket, options: HttpOptions, servers: Servers | None = None) -> int:
    """Answer until a signal, or the servers' own end; the exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    connections = Connections(router, http_limits(options))
    listener = Listener(listening, connections)
    listener.open()
    if servers is not None:
        servers.begin(stop)
    tasks = [loop.create_task(router.watch()), loop.create_task(_sweep(connections, listener))]
    await stop.wait()
    router.draining = True
    listener.close()
    await router.finish(options.drain_seconds)
    if servers is not None:
        await servers.finish()
    connections.close_idle()
    await asyncio.sleep(0.1)  # for last answers to leave
    for task in tasks:
        task.cancel()
    connections.abort()
    await asyncio.gather(*tasks, return_exceptions=True)
    return 0 if servers is None else servers.code


async def _sweep(connections: Connections, listener: Listener) -> None:
    """End slow clients, and take connections again where there is room."""
    while True:
        await asyncio.sleep(1.0)
        connections.sweep(time.monotonic())
        listener.look()
