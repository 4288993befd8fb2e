"""What nodes tell each other, as JSON. Another version's unknown fields are ignored: versions are what is compared."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """One JSON object in the store of the meeting."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Card(Message):
    """What a node says when it comes.

    name: its host name. address, port: where it answers measurements; token: 32 hexadecimal digits that a measurement
    begins with. host: whether the meeting is held here. data_bytes: size of the files that it will read.
    mark: a file below $FASTSERVE_HOME that it wrote, None where it could not.
    """

    number: int
    name: str
    address: str
    port: int
    token: str
    host: bool
    fastserve: str
    data_bytes: int = 0
    mark: str | None = None


class Roster(Message):
    """Who takes part, and how many seconds the reports may take. The host decides."""

    cards: list[Card]
    seconds: float


class Facts(Message):
    """What a node is.

    versions: name to version, 'none' where absent. memory_gib, home_gib: free. configuration: as to_json() gives it.
    data: each file of the configuration to its SHA-256, or to what is wrong with it; unchecked: addresses that are no
    local files.
    """

    versions: dict[str, str] = {}
    cores: int = 0
    gpus: list[str] = []
    memory_gib: float = 0.0
    home: str = ""
    home_gib: float = 0.0
    configuration: dict[str, Any] | None = None
    data: dict[str, str] = {}
    unchecked: list[str] = []


class Link(Message):
    """What a node measured towards another one. error: why not, then the figures are None.

    clock_ahead_seconds: the other's clock minus this one's.
    """

    to: int
    error: str | None = None
    round_trip_seconds: float | None = None
    bytes_per_second: float | None = None
    clock_ahead_seconds: float | None = None


class Report(Message):
    """All that a node found. sees: numbers of the nodes whose marks it sees below its own $FASTSERVE_HOME.

    places: where a run would meet when the first place is lost, and how this node gets there (`preflight.places`).
    """

    card: Card
    facts: Facts
    links: list[Link]
    sees: list[int]
    places: dict[str, str] = {}


class Reports(Message):
    """Those that came, which the host gives to all."""

    reports: list[Report]
