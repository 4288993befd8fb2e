"""The gate that a version passes before it takes traffic: the rows kept in it, through the real HTTP path.

A request goes through a socket, the parser, the routes, the batcher and the runtime, exactly as a client's does, and
must come back with the labels and probabilities that evaluation gave.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from fastserve.serving.app import App
from fastserve.serving.board import Board
from fastserve.serving.connection import Connections
from fastserve.serving.deployment import Deployment, Slot
from fastserve.serving.events import Events
from fastserve.serving.keys import Gate
from fastserve.serving.messages import HttpLimits
from fastserve.serving.model import ParityRow
from fastserve.serving.options import ServeOptions

_NAME = "candidate"
_SMOKE_TEXTS = ("", "a made-up row", "一行编造的文字")
_ROWS_AT_ONCE = 64


async def check(deployment: Deployment, options: ServeOptions) -> list[str]:
    """What differs from the evaluation, a sentence a fault, texts not quoted; empty where the version may serve."""
    app = App({_NAME: Slot(_NAME, _NAME, deployment)}, options, Gate([]), Board([_NAME]), 0, Events(level="error"))
    row, deployment.row = deployment.row, app.board.row(0, _NAME)  # the gate's own requests are not the users'
    connections = Connections(app, HttpLimits())
    server_side, client_side = socket.socketpair()
    try:
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(connections.make, server_side)
        reader, writer = await asyncio.open_connection(sock=client_side)
        try:
            return await _compare(deployment, options, reader, writer)
        finally:
            writer.close()
            connections.abort()
    finally:
        deployment.row = row


async def _compare(
    deployment: Deployment, options: ServeOptions, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> list[str]:
    model = deployment.model
    tolerance = model.tolerance if options.parity_tolerance == "auto" else options.parity_tolerance
    rows = list(model.parity)
    texts = [row.text for row in rows] or list(_SMOKE_TEXTS)
    faults: list[str] = []
    for size in (1, _ROWS_AT_ONCE):  # alone and in a crowd: a row's answer must not depend on its neighbours
        predictions: list[dict[str, Any]] = []
        for chunk in _chunks(texts, min(size, options.max_texts)):
            predictions += await _ask(chunk, reader, writer)
        if rows:
            faults += _faults(rows, predictions, tolerance)
        else:
            faults += [
                f"made-up row {n}: scores are not numbers" for n, p in enumerate(predictions, 1) if not _finite(p)
            ]
    return faults


def _chunks(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


async def _ask(texts: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[dict[str, Any]]:
    """The predictions of one HTTP request."""
    body = orjson.dumps({"instances": texts})
    head = f"POST /v1/models/{_NAME}:predict HTTP/1.1\r\nhost: loopback\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode("ascii") + body)
    status = int((await reader.readline()).split()[1])
    length = 0
    while (line := await reader.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    content = orjson.loads(await reader.readexactly(length))
    if status != 200:
        return [{"label": f"HTTP {status}: {content.get('error')}", "scores": {}} for _ in texts]
    predictions: list[dict[str, Any]] = content["predictions"]
    return predictions


def _finite(prediction: Mapping[str, Any]) -> bool:
    scores = prediction["scores"]
    return bool(scores) and all(isinstance(score, float) and np.isfinite(score) for score in scores.values())


def _faults(rows: Sequence[ParityRow], predictions: Iterable[Mapping[str, Any]], tolerance: float) -> Iterator[str]:
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=True), start=1):
        found = prediction["scores"]
        if found.keys() != row.scores.keys():
            yield f"parity row {number}: the answer is {prediction['label']!r} instead of scores for the model's labels"
            continue
        if not _finite(prediction):
            yield f"parity row {number}: a score is not a number"
            continue
        worst = max(row.scores, key=lambda label: abs(found[label] - row.scores[label]))
        if abs(found[worst] - row.scores[worst]) > tolerance:
            yield (
                f"parity row {number}: '{worst}' has {found[worst]:.6f}, evaluation gave {row.scores[worst]:.6f} "
                f"(allowed difference {tolerance:g})"
            )
