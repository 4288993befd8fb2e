"""The check of one node: it comes, looks, reports, and judges what all have reported."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastserve
from fastserve import files, log
from fastserve.config import Config, home
from fastserve.distributed.network import Endpoint, interface_towards
from fastserve.distributed.preflight import limits
from fastserve.distributed.preflight.facts import data_bytes, facts
from fastserve.distributed.preflight.links import Clock, Responder, measure
from fastserve.distributed.preflight.meeting import POLL_SECONDS, Meeting
from fastserve.distributed.preflight.messages import Card, Report, Roster
from fastserve.distributed.preflight.outcome import Outcome
from fastserve.distributed.preflight.places import Places
from fastserve.errors import StorageError


@dataclass(frozen=True, slots=True)
class Request:
    """What to check. nodes: least and most that shall come; seconds: how long to wait for them.

    further: places where a run would meet when `endpoint` is lost.
    """

    endpoint: Endpoint
    nodes: tuple[int, int]
    config: Config | None = None
    seconds: float = 60.0
    further: Sequence[Endpoint] = ()


def check(request: Request, *, clock: Clock = time.time) -> Outcome:
    """Meet the other nodes, on which the same is called, and find who is odd.

    WorkError where this node cannot take part. clock: seconds since 1970, for tests.
    """
    interface = interface_towards(request.endpoint)
    most = request.nodes[1]
    log.say(f"{most} nodes meet at {request.endpoint}; they are waited for at most {request.seconds:.0f} s")
    with (
        Responder(interface.address, clock) as responder,
        _mark() as mark,
        Places(request.further) as places,
    ):
        meeting = Meeting.open(request.endpoint, interface, request.seconds)
        card = Card(
            number=meeting.number(),
            name=socket.gethostname(),
            address=interface.address,
            port=responder.port,
            token=responder.token,
            host=meeting.host,
            fastserve=fastserve.__version__,
            data_bytes=data_bytes(request.config),
            mark=mark,
        )
        roster = meeting.join(card, most, request.seconds, len(request.further))
        log.say(f"{len(roster.cards)} nodes compare themselves, which lasts at most {roster.seconds:.0f} s")
        reports = meeting.share(_look(card, roster, request.config, clock, places), roster)
    reports.sort(key=lambda report: (not report.card.host, report.card.name, report.card.number))
    return Outcome(request.endpoint, request.nodes, request.seconds, roster.cards, reports)


def _look(card: Card, roster: Roster, config: Config | None, clock: Clock, places: Places) -> Report:
    """Everything that this node can find out."""
    others = [each for each in roster.cards if each.number != card.number]
    others.sort(key=lambda each: (each.number - card.number) % (len(others) + 1))  # so that not all ask the same one
    found = facts(config)
    links = [measure(each, clock) for each in others]
    return Report(card=card, facts=found, links=links, sees=_visible(others), places=places.reached())


@contextlib.contextmanager
def _mark() -> Iterator[str | None]:
    """A file below $FASTSERVE_HOME for the others to see; None where it cannot be written."""
    path = home() / f".preflight-{secrets.token_hex(8)}"
    try:
        files.write_text(path, "")
    except (OSError, StorageError):
        yield None
        return
    try:
        yield path.name
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _visible(others: list[Card]) -> list[int]:
    """Numbers of the nodes whose marks are seen here, waiting for all of them a little."""
    wanted = {card.number: home() / card.mark for card in others if card.mark is not None}
    deadline = time.monotonic() + limits.MARK
    while time.monotonic() < deadline and not all(map(_exists, wanted.values())):
        time.sleep(POLL_SECONDS)
    return [number for number, path in wanted.items() if _exists(path)]


def _exists(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.exists()
    return False
