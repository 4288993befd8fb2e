"""`fastserve models`: the versions that there are, and where their names point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastserve.bundle.format import DataSource
from fastserve.cli.main import json_option, show
from fastserve.config import home
from fastserve.errors import BundleError
from fastserve.registry import Registry
from fastserve.registry.summary import ModelSummary, VersionSummary

HEADLINES = ("accuracy", "f1_macro", "bits_per_character")
"""Figures by which versions are told apart at a glance."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def models() -> None:
    """List, promote, roll back, compare, verify and move models."""


@models.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """Every model: its newest version, and where its aliases point."""
    found = Registry(home()).list()
    lines = [_model_line(model) for model in found] or ["no models yet: fastserve train --data FILE --name NAME"]
    show({"models": [model.to_json() for model in found]}, "\n".join(lines), as_json=as_json)


@models.command("show")
@click.argument("name")
@json_option
def show_model(name: str, as_json: bool) -> None:
    """One model with all its versions and how its aliases moved."""
    model = Registry(home()).show(name)
    moves = [f"  {move.at:%Y-%m-%d %H:%M} {move.kind} {move.alias} -> {move.version}" for move in model.moves]
    lines = [_model_line(model), *map(_version_line, model.versions), *(["moves:", *moves] if moves else [])]
    show(model.to_json(), "\n".join(lines), as_json=as_json)


@models.command()
@click.argument("reference")
@click.option("--alias", default="production", show_default=True)
@json_option
def promote(reference: str, alias: str, as_json: bool) -> None:
    """Point an alias at a version; servers that follow it swap without a failed request."""
    version = Registry(home()).promote(reference, alias)
    text = f"{version.name}@{alias} is now version {version.number}"
    show({"alias": alias, "version": version.reference}, text, as_json=as_json)


@models.command()
@click.argument("name")
@click.option("--alias", default="production", show_default=True)
@json_option
def rollback(name: str, alias: str, as_json: bool) -> None:
    """Point an alias to where it pointed before."""
    version = Registry(home()).rollback(name, alias)
    text = f"{name}@{alias} is version {version.number} again"
    show({"alias": alias, "version": version.reference}, text, as_json=as_json)


@models.command()
@click.argument("before")
@click.argument("after")
@json_option
def diff(before: str, after: str, as_json: bool) -> None:
    """What differs between two models: configuration, data, labels, metrics, weights."""
    found = Registry(home()).diff(before, after)
    weights = "the weights are equal" if found.weights_equal else "the weights differ"
    show(found.to_json(), "\n".join([weights, *map(str, found.changes)]), as_json=as_json)


@models.command()
@click.argument("reference", required=False)
@json_option
def verify(reference: str | None, as_json: bool) -> None:
    """Compare every file with its checksum: of one version, one model, or all."""
    found = Registry(home()).verify(reference)
    lines = [f"{version}: {'; '.join(faults) or 'whole'}" for version, faults in found.items()]
    damaged = [line for line, faults in zip(lines, found.values(), strict=True) if faults]
    show(
        {version: list(faults) for version, faults in found.items()}, "\n".join(lines or ["no models"]), as_json=as_json
    )
    if damaged:
        raise BundleError("\n".join([*damaged, "import or publish them again"]))


@models.command()
@click.argument("reference")
@json_option
def lineage(reference: str, as_json: bool) -> None:
    """Which data and configuration a version was made from, and from which version before."""
    chain = Registry(home()).lineage(reference)
    result = [{"version": a.reference, "lineage": a.lineage and a.lineage.model_dump(mode="json")} for a in chain]
    lines = []
    for ancestor in chain:
        data = ", ".join(map(_source, ancestor.lineage.data)) if ancestor.lineage else "unknown"
        lines.append(f"{ancestor.reference}: data {data}")
    show({"lineage": result}, "\n".join(lines), as_json=as_json)


@models.command()
@click.argument("reference")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def export(reference: str, file: Path, as_json: bool) -> None:
    """Write a version as one file, FILE.tar.zst or FILE.tar.gz."""
    written = Registry(home()).export(reference, file)
    show({"file": str(written)}, f"wrote {reference} to {written}", as_json=as_json)


@models.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Another name than the one in the file.")
@json_option
def import_model(file: Path, name: str | None, as_json: bool) -> None:
    """Read an exported file as the next version of its model."""
    version = Registry(home()).import_(file, name=name)
    show({"version": version.reference}, f"imported {version.reference}", as_json=as_json)


@models.command()
@click.argument("reference")
@click.option("--force", is_flag=True, help="Also where an alias points at it.")
@json_option
def delete(reference: str, force: bool, as_json: bool) -> None:
    """Remove one version; its number is not used again."""
    version = Registry(home()).delete(reference, force=force)
    show({"deleted": version.reference}, f"deleted {version.reference}", as_json=as_json)


def _source(source: DataSource) -> str:
    return f"{source.address} ({source.rows:,} rows)" if source.rows else source.address


def _model_line(model: ModelSummary) -> str:
    aliases = ", ".join(f"{alias} -> {number}" for alias, number in model.aliases.items()) or "no alias"
    return f"{model.name}: {len(model.versions)} version(s), newest {model.latest}, {aliases}"


def _version_line(version: VersionSummary) -> str:
    if version.fault:
        return f"  {version.reference}: {version.fault}"
    figures = version.metrics or {}
    headline: dict[str, Any] = {name: figures[name] for name in HEADLINES if name in figures}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in headline.items()) or "not evaluated"
    marks = f" [{', '.join(version.aliases)}]" if version.aliases else ""
    size = version.size_bytes / 2**20
    what = f"{version.labels} labels" if version.labels else f"task {version.task}"
    kind = f"{version.network}, {what}, {shown}, {size:.1f} MiB"
    return f"  {version.reference}{marks}: {kind}, {version.created}"
