"""The gate's way in: requests to one deployment through the real HTTP path, before anybody else can reach it.

A request goes through a socket, the parser, the routes and the deployment, exactly as a client's does.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import orjson

from fastserve.serving.app import App
from fastserve.serving.board import Board
from fastserve.serving.connection import Connections
from fastserve.serving.deployment import Deployment, Slot
from fastserve.serving.events import Events
from fastserve.serving.keys import Gate
from fastserve.serving.messages import HttpLimits
from fastserve.serving.options import ServeOptions

_NAME = "candidate"


async def find_faults(deployment: Deployment, options: ServeOptions) -> list[str]:
    """What keeps `deployment` from serving, asked over a socket of its own."""
    app = App({_NAME: Slot(_NAME, _NAME, deployment)}, options, Gate([]), Board([_NAME]), 0, Events(level="error"))
    row, deployment.row = deployment.row, app.board.row(0, _NAME)  # the gate's own requests are not the users'
    connections = Connections(app, HttpLimits())
    server_side, client_side = socket.socketpair()
    try:
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(connections.make, server_side)
        reader, writer = await asyncio.open_connection(sock=client_side)
        try:
            return await deployment.faults(Loopback(reader, writer))
        finally:
            writer.close()
            connections.abort()
    finally:
        deployment.row = row


class Loopback:
    """Asks over one connection, one request after another."""

    name = _NAME

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def __call__(self, path: str, content: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and JSON content of the answer."""
        body = orjson.dumps(content)
        target = path.replace("{name}", _NAME)
        head = f"POST {target} HTTP/1.1\r\nhost: loopback\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode("ascii") + body)
        status = int((await self._reader.readline()).split()[1])
        length = 0
        while (line := await self._reader.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, orjson.loads(await self._reader.readexactly(length))
