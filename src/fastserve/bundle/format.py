"""What `fastserve.json` says: the manifest of a model folder, its version number and its upgrades.

A manifest is frozen and strict: an unknown key or a wrong type is an error. When the layout changes, `FORMAT` rises by
one and `UPGRADES` gains the function that turns the content of the version before into the new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from fastserve.errors import BundleError

FORMAT = 1
MANIFEST = "fastserve.json"
WEIGHTS = "model.safetensors"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")]
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name of a table, never `module:Class`: a manifest may come from anywhere and must not choose what is called."""
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

UPGRADES: Mapping[int, Upgrade] = {}
"""Format n to the function that makes the content of format n into that of n + 1."""


class Part(BaseModel):
    """A part of the manifest: frozen, exact types, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )


class NetworkSpec(Part):
    """How to build the network: its name, its options, and the shape that the data gave it."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    shape: dict[str, Any] = Field(default_factory=dict)
    """The fields of `models.NetworkShape`."""


class ParityRow(Part):
    """A text and the probabilities, in the order of the labels, that evaluation gave it."""

    text: str
    scores: tuple[float, ...]


class RuntimeFile(Part):
    """The network in another runtime's form, kept in the folder beside the weights."""

    file: FileName
    passed: bool
    """Whether it kept the accuracy of the weights; `auto` uses it only then."""
    check: dict[str, float] = Field(default_factory=dict)
    """The figures of that check."""
    parity: tuple[tuple[float, ...], ...] = ()
    """What this form gave for the texts of `Manifest.parity`, in their order; empty where that was not computed."""


class DataSource(Part):
    """Data that the model learned from."""

    address: str
    sha256: Sha256 | None = None
    rows: int = 0


class Lineage(Part):
    """Where a model comes from: enough to make it again."""

    data: tuple[DataSource, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)
    parent: str | None = None
    """The version that this one was made from, as name@version."""
    versions: dict[str, str] = Field(default_factory=dict)
    """python, torch, numpy and the other libraries of the run."""
    seed: int | None = None
    duration_seconds: float | None = None
    started: AwareDatetime | None = None


class Manifest(Part):
    """The content of `fastserve.json`."""

    format: int = FORMAT
    fastserve: str
    """The version of FastServe that wrote the folder."""
    created: AwareDatetime
    task: PlainName
    labels: tuple[str, ...]
    multi_label: bool = False
    text: dict[str, Any]
    """What `TextPipeline.save` returned."""
    network: NetworkSpec
    model_sha256: Sha256
    metrics: dict[str, float] = Field(default_factory=dict)
    parity: tuple[ParityRow, ...] = ()
    runtimes: dict[PlainName, RuntimeFile] = Field(default_factory=dict)
    """Other forms of the network by runtime name, the one that was asked for last first."""
    lineage: Lineage = Lineage()

    @field_validator("labels")
    @classmethod
    def _each_label_once(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({label for label in labels if labels.count(label) > 1}) if len(set(labels)) < len(labels) else []
        if twice:
            raise ValueError(f"each label must occur once, found twice: {', '.join(twice)}")
        return labels

    def parity_of(self, runtime: str) -> tuple[ParityRow, ...]:
        """The parity rows with the scores that `runtime` must give: those of its own check, where it had one."""
        form = self.runtimes.get(runtime)
        if form is None or not form.parity:
            return self.parity
        return tuple(
            ParityRow(text=row.text, scores=scores) for row, scores in zip(self.parity, form.parity, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_bytes(self) -> bytes:
        """The bytes of the file. ValueError where a number is not finite, since JSON has no such number."""
        content = json.dumps(self.to_json(), ensure_ascii=False, indent=2, allow_nan=False)
        return (content + "\n").encode("utf-8")


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """The manifest in `content`, upgraded where it is of an older format. `path` is for the messages.

    Raises BundleError for damaged JSON (with file and line), a newer format (with what is needed) and a wrong key.
    """
    values = upgrade(_parse_json(content, path), path)
    try:
        return Manifest.model_validate_json(json.dumps(values))
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise BundleError(f"{path} is not a valid manifest: {'; '.join(faults)}") from None


def _parse_json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except RecursionError:
        raise BundleError(f"{path} line 1 is damaged: it is nested too deeply for a manifest") from None
    except json.JSONDecodeError as error:
        raise BundleError(
            f"{path} line {error.lineno} is damaged: {error.msg} (column {error.colno}); "
            "publish or import the model again"
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BundleError(f"{path} line {line} is damaged: it is not UTF-8 text") from None
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise BundleError(f"{path} line 1: expected a JSON object with a number at 'format'; is this a model folder?")
    return values


def upgrade(
    values: dict[str, Any], path: Path, *, target: int = FORMAT, upgrades: Mapping[int, Upgrade] = UPGRADES
) -> dict[str, Any]:
    """`values` as format `target`, step by step."""
    found = values["format"]
    if found > target:
        raise BundleError(
            f"{path} has format {found}, written by FastServe {values.get('fastserve', '(unknown)')}; this FastServe "
            f"reads formats up to {target}. Install FastServe {values.get('fastserve', 'of that time')} or newer"
        )
    for number in range(found, target):
        if number not in upgrades:
            raise BundleError(f"{path} has format {found}, which this FastServe no longer reads; it reads {target}")
        values = {**upgrades[number](values), "format": number + 1}
    return values
