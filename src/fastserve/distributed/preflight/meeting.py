"""Where nodes meet: a torch TCPStore on the node that owns the address, with a limit to every wait."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from fastserve import log
from fastserve.distributed.network import Endpoint, Interface
from fastserve.distributed.preflight import limits
from fastserve.distributed.preflight.messages import Card, Message, Report, Reports, Roster
from fastserve.errors import WorkError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

Value = TypeVar("Value")
M = TypeVar("M", bound=Message)

POLL_SECONDS = 0.05
JOINED = "joined"
ROSTER, REPORTS = "roster", "reports"


class Meeting:
    """The store of one check. `host`: whether it is held in this process, which then decides who takes part."""

    def __init__(self, store: TCPStore, endpoint: Endpoint, *, host: bool) -> None:
        self.store, self.endpoint, self.host = store, endpoint, host

    @classmethod
    def open(cls, endpoint: Endpoint, interface: Interface, seconds: float) -> Meeting:
        """Hold the meeting where the address is this machine's and free, else go there, waiting at most `seconds`."""
        import torch.distributed  # noqa: F401  # lasts seconds, which nobody shall take for silence

        listening = _listen(endpoint) if interface.owns(endpoint) else None
        if listening is None:
            _wait_until_listening(endpoint, seconds)
        try:
            store = limits.within(limits.STORE, lambda: _store(endpoint, listening))
        except (TimeoutError, RuntimeError) as error:
            raise WorkError(
                f"what listens at {endpoint} is no meeting of FastServe: {error}. "
                "Choose a free port, the same on all nodes"
            ) from None
        return cls(store, endpoint, host=listening is not None)

    # One exchange each

    def number(self) -> int:
        """Counted from 0 in the order of coming."""
        return self._ask(lambda: self.store.add(JOINED, 1)) - 1

    def put(self, key: str, message: Message) -> None:
        self._ask(lambda: self.store.set(key, message.model_dump_json()))

    def find(self, key: str, kind: type[M]) -> M | None:
        """What was put under `key`, None where nothing was yet."""
        if not self._ask(lambda: self.store.check([key])):
            return None
        return kind.model_validate_json(self._ask(lambda: self.store.get(key)))

    def wait(self, key: str, kind: type[M], seconds: float) -> M:
        """What is put under `key` by the host."""
        deadline = time.monotonic() + seconds
        while (found := self.find(key, kind)) is None:
            if time.monotonic() > deadline:
                raise WorkError(f"the host of {self.endpoint} said nothing about its {key} within {seconds:.0f} s")
            time.sleep(POLL_SECONDS)
        return found

    def _ask(self, question: Callable[[], Value]) -> Value:
        try:
            return limits.within(limits.STORE, question)
        except (TimeoutError, RuntimeError) as error:  # torch's errors of a store are RuntimeErrors
            reason = str(error).splitlines()[0]
            raise WorkError(f"{self.endpoint} was reached, then lost: {reason}") from None

    # The three rounds

    def join(self, card: Card, most: int, seconds: float, places: int = 0) -> Roster:
        """Come, and learn who else came. The host waits for `most` nodes, at most `seconds`. places: to be tried."""
        if card.number >= most:
            raise WorkError(f"{most} nodes were expected at {self.endpoint}, and this is one more: see --nodes")
        self.put(f"card/{card.number}", card)
        if self.host:
            cards = self._await_cards(most, seconds)
            data_bytes = max(each.data_bytes for each in cards)
            self.put(ROSTER, Roster(cards=cards, seconds=limits.reports(len(cards), data_bytes, places)))
        roster = self.wait(ROSTER, Roster, seconds + limits.SPARE)
        if card.number not in {each.number for each in roster.cards}:
            raise WorkError(f"the check at {self.endpoint} began without this node: start all of them again")
        return roster

    def _await_cards(self, most: int, seconds: float) -> list[Card]:
        cards: dict[int, Card] = {}
        deadline = time.monotonic() + seconds
        while len(cards) < most and time.monotonic() < deadline:
            for number in set(range(most)) - set(cards):
                card = self.find(f"card/{number}", Card)
                if card is not None:
                    cards[number] = card
                    log.say(f"{card.name} ({card.address}) is here: {len(cards)} of {most}")
            time.sleep(POLL_SECONDS)
        return [cards[number] for number in sorted(cards)]

    def share(self, report: Report, roster: Roster) -> list[Report]:
        """Give this node's report and get all that came, the same ones on every node."""
        self.put(f"report/{report.card.number}", report)
        if self.host:
            self.put(REPORTS, Reports(reports=self._await_reports(roster)))
        found = self.wait(REPORTS, Reports, roster.seconds + limits.SPARE).reports
        self._part(found)
        return found

    def _await_reports(self, roster: Roster) -> list[Report]:
        found: dict[int, Report] = {}
        missing = {card.number for card in roster.cards}
        deadline = time.monotonic() + roster.seconds
        while missing and time.monotonic() < deadline and not _given_up(missing, list(found.values())):
            for number in sorted(missing):
                report = self.find(f"report/{number}", Report)
                if report is not None:
                    found[number] = report
            missing -= set(found)
            time.sleep(POLL_SECONDS)
        return [found[number] for number in sorted(found)]

    def _part(self, reports: Sequence[Report]) -> None:
        """The host goes last, else the others could not read."""
        if not self.host:
            self._ask(lambda: self.store.add("done", 1))
            return
        deadline = time.monotonic() + limits.FAREWELL
        with suppress(WorkError):
            while self._ask(lambda: self.store.add("done", 0)) < len(reports) - 1 and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)


def _given_up(missing: set[int], reports: Sequence[Report]) -> bool:
    """Whether all other nodes have reported, and none of them reached those that are missing."""
    if not reports:
        return False
    return all(link.error is not None for report in reports for link in report.links if link.to in missing) and all(
        missing <= {link.to for link in report.links} for report in reports
    )


def _listen(endpoint: Endpoint) -> socket.socket | None:
    """A socket at the address, None where another process (another node on this machine, as it may be) has it."""
    try:
        return socket.create_server((endpoint.host, endpoint.port), backlog=256)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise WorkError(f"cannot listen at {endpoint}: {error.strerror}") from None


def _wait_until_listening(endpoint: Endpoint, seconds: float) -> None:
    deadline, reason = time.monotonic() + seconds, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((endpoint.host, endpoint.port), timeout=min(left, limits.CONNECT)).close()
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(min(POLL_SECONDS, left))
        else:
            return
    raise WorkError(
        f"nobody is met at {endpoint} within {seconds:.0f} s ({reason}): start the same command on {endpoint.host}, "
        "and let this node reach that port"
    )


def _store(endpoint: Endpoint, listening: socket.socket | None) -> TCPStore:
    from torch._C._distributed_c10d import TCPStore

    return TCPStore(
        endpoint.host,
        endpoint.port,
        None,
        listening is not None,
        timedelta(seconds=limits.STORE),
        wait_for_workers=False,
        master_listen_fd=None if listening is None else listening.detach(),
    )
