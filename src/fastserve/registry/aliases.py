"""The state of one model beside its versions: aliases, how they moved, and the next number. One JSON file."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field, PositiveInt, ValidationError

from fastserve import files
from fastserve.bundle.format import Part
from fastserve.errors import StorageError

ALIASES = "aliases.json"


class Move(Part):
    """One change of an alias. `version` is where it pointed afterwards; None where it was removed."""

    alias: str
    version: PositiveInt | None
    kind: Literal["promote", "rollback", "delete"]
    at: AwareDatetime


class State(Part):
    """The content of `aliases.json`."""

    format: Literal[1] = 1
    next: PositiveInt = 1
    """No version below this number is made again, so that a deleted number never means another model."""
    aliases: dict[str, PositiveInt] = Field(default_factory=dict)
    moves: tuple[Move, ...] = ()

    def moved(self, alias: str, version: int | None, kind: Literal["promote", "rollback", "delete"]) -> State:
        """The state after `alias` was pointed to `version` (None: removed)."""
        aliases = {name: number for name, number in self.aliases.items() if name != alias}
        if version is not None:
            aliases[alias] = version
        move = Move(alias=alias, version=version, kind=kind, at=datetime.now(UTC).replace(microsecond=0))
        return self.model_copy(update={"aliases": dict(sorted(aliases.items())), "moves": (*self.moves, move)})

    def without(self, version: int) -> State:
        """The state after `version` was deleted."""
        state = self.model_copy(update={"next": max(self.next, version + 1)})
        for alias in self.pointing_at(version):
            state = state.moved(alias, None, "delete")
        return state

    def pointing_at(self, version: int) -> list[str]:
        return [alias for alias, number in self.aliases.items() if number == version]

    def trail(self, alias: str) -> list[int]:
        """Where `alias` was promoted to, oldest first, without what was rolled back; the last is where it points."""
        trail: list[int] = []
        for move in self.moves:
            if move.alias != alias:
                continue
            if move.version is None:
                trail.clear()
            elif move.kind == "promote":
                trail.append(move.version)
            else:
                while trail and trail[-1] != move.version:
                    trail.pop()
        return trail


def read_state(model: Path) -> State:
    """The state of the model in folder `model`; a fresh one where none was written. StorageError where damaged."""
    path = model / ALIASES
    try:
        return State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return State()
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise StorageError(
            f"{path} is damaged: {where + ': ' if where else ''}{fault['msg']}. Mend it by hand, or remove it and "
            "promote again (the versions are not affected)"
        ) from None


def write_state(model: Path, state: State) -> None:
    """Replace the file atomically."""
    files.write_json(model / ALIASES, json.loads(state.model_dump_json()))
