"""A loaded version of a model as the server sees it, whatever it answers, and the slot that holds the one in charge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fastserve.serving.board import Row
from fastserve.serving.events import Events
from fastserve.serving.messages import Exchange
from fastserve.serving.options import ServeOptions

Verb = Callable[[Exchange, str], None]
"""Answers an exchange that reached the model under this served name; raises HttpError where it refuses."""


class Place(NamedTuple):
    """Where a version is deployed: its row of the board, the server's options, its log."""

    row: Row
    options: ServeOptions
    events: Events


class Ask(Protocol):
    """A request through the real HTTP path, to the version that is being judged."""

    async def __call__(self, path: str, content: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and JSON content of the answer. `{name}` in `path` stands for the name under which it is served."""

    @property
    def name(self) -> str:
        """That name."""


class Deployment(Protocol):
    """One version of a model, ready to answer. Belongs to the event loop that made it."""

    folder: Path
    version: str
    row: Row

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """What it can be asked, of the verbs in `app`."""

    @property
    def names(self) -> Sequence[str]:
        """Further names by which a body may ask for a part of it: those of adapters."""

    def about(self, name: str, refused: Mapping[str, str] | None) -> dict[str, Any]:
        """What `GET /v2/models/{name}` says; refused: which version was last refused, and why."""

    def traits(self) -> dict[str, Any]:
        """What the log says when it is loaded."""

    def card(self) -> dict[str, Any]:
        """What the list of models says of it beyond its name."""

    def set_gauges(self) -> None:
        """Put what is in hand now on the board."""

    def stalled_seconds(self, now: float) -> float:
        """For how long it has had work without finishing any, where only a new worker process would help."""

    def is_ready(self, now: float, limit: float) -> bool:
        """Whether it can answer, and has not been without progress for `limit` seconds."""

    async def faults(self, ask: Ask) -> list[str]:
        """What keeps it from serving, a sentence a fault, no user's text quoted: the gate before it takes traffic."""

    async def retire(self) -> None:
        """Finish what was accepted, then let the model go."""

    async def close(self) -> None:
        """End at once."""


@dataclass(slots=True)
class Slot:
    """A served name: what was asked for, who is in charge, and which version was last refused, with the reason."""

    name: str
    reference: str
    current: Deployment | None = None
    refused: tuple[Path, str] | None = None


def version_of(folder: Path) -> str:
    """The version that a folder of the registry is; 1 for any other."""
    return folder.name if folder.name.isdecimal() else "1"
