"""Saving and loading the folder that is a model.

fastserve.json       the manifest: task, labels, text pipeline, network, metrics, lineage
model.safetensors    the weights
(text files)         what the text pipeline wrote: vocabulary, tokenizer.json
report.json, report.html, card.md
SHA256SUMS           the checksum of every other file
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import fastserve
from fastserve import files
from fastserve.bundle.card import write_card
from fastserve.bundle.format import (
    MANIFEST,
    WEIGHTS,
    Lineage,
    Manifest,
    NetworkSpec,
    ParityRow,
    RuntimeFile,
    parse_manifest,
)
from fastserve.bundle.weights import Array, read_weights, write_weights
from fastserve.errors import BundleError
from fastserve.types import Report

if TYPE_CHECKING:
    from torch import Tensor

    from fastserve.text.pipeline import TextPipeline
    from fastserve.text.writing_pipeline import WritingPipeline

REPORT = "report.json"
REPORT_PAGE = "report.html"
CARD = "card.md"
ADAPTER = "adapter"
"""The folder of a LoRA adapter that is kept apart from the weights; `peft` loads it."""
_MOST_MANIFEST_BYTES = 64 << 20


class SavesItself(Protocol):
    """The part of a text pipeline that saving needs."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what is too big for the manifest into `folder`; return the rest."""


def save_bundle(
    folder: Path,
    *,
    task: str,
    labels: Sequence[str],
    network: NetworkSpec,
    pipeline: SavesItself,
    weights: Mapping[str, Array | Tensor],
    multi_label: bool = False,
    metrics: Mapping[str, float] | None = None,
    parity: Sequence[ParityRow] = (),
    lineage: Lineage | None = None,
    runtimes: Mapping[str, RuntimeFile] | None = None,
    report: Report | None = None,
    report_html: str | None = None,
    extra_files: Mapping[str, bytes | str | Path] | None = None,
) -> Bundle:
    """Write a model folder; it appears at `folder` whole or not at all, and must not exist before.

    metrics: the headline figures; None takes every finite one of `report`.
    extra_files: name in the folder to content (bytes, text) or to a file that is copied; for instance `model.onnx`.
    """
    with files.new_folder(folder) as temporary:
        write_weights(temporary / WEIGHTS, weights)
        manifest = Manifest(
            fastserve=fastserve.__version__,
            created=datetime.now(UTC).replace(microsecond=0),
            task=task,
            labels=tuple(labels),
            multi_label=multi_label,
            text=pipeline.save(temporary),
            network=network,
            model_sha256=files.sha256(temporary / WEIGHTS),
            metrics=headline(report) if metrics is None else dict(metrics),
            parity=tuple(parity),
            runtimes=dict(runtimes or {}),
            lineage=lineage or Lineage(),
        )
        _write_rest(temporary, manifest, report, report_html, extra_files or {})
    return Bundle(folder, manifest)


def headline(report: Report | None) -> dict[str, float]:
    """The figures of a report that a manifest keeps: every finite one."""
    found = {name: metric.value for name, metric in report.metrics.items()} if report else {}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _write_rest(
    folder: Path,
    manifest: Manifest,
    report: Report | None,
    report_html: str | None,
    extra_files: Mapping[str, bytes | str | Path],
) -> None:
    """Everything but weights and text files; the checksums last."""
    for name, content in extra_files.items():
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"extra file '{name}' lies outside of the model folder; give a plain relative name")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_content(content))
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    if report is not None:
        files.write_json(folder / REPORT, report.to_json())
    if report_html is not None:
        (folder / REPORT_PAGE).write_text(report_html, "utf-8")
    (folder / CARD).write_text(write_card(manifest, report), "utf-8")
    files.write_sums(folder, {WEIGHTS: manifest.model_sha256})


def amend_manifest(folder: Path, manifest: Manifest, rewritten: Collection[str] = ()) -> None:
    """Give a model folder that nobody uses yet another manifest, with the card and the checksums that belong to it.

    rewritten: files whose checksums are no longer those of SHA256SUMS; files that are new need not be named.
    """
    sums = files.read_sums(folder)
    changed = {MANIFEST, CARD, *rewritten}
    report = Bundle(folder, manifest).report()
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    (folder / CARD).write_text(write_card(manifest, report), "utf-8")
    files.write_sums(folder, {name: checksum for name, checksum in sums.items() if name not in changed})


def _content(content: bytes | str | Path) -> bytes:
    if isinstance(content, Path):
        return content.read_bytes()
    return content.encode("utf-8") if isinstance(content, str) else content


class Bundle:
    """A model folder that was read. Text pipeline and weights are read when first asked for."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, {self.manifest.network.name})"

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> Bundle:
        """Read a model folder.

        verify: compare every file with SHA256SUMS. The weights stay on the disk (and in the system's cache) until
        `weights()` maps them. BundleError says which file is damaged or missing.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise BundleError(f"there is no model folder {folder}; expected a folder with {MANIFEST} in it")
        try:
            return cls(folder, _load_manifest(folder, verify))
        except PermissionError as error:
            raise BundleError(f"{error.filename} cannot be read: {error.strerror}; change its owner or mode") from None

    @functools.cached_property
    def pipeline(self) -> TextPipeline:
        """The saved steps from raw text to numbers."""
        from fastserve.text.pipeline import TextPipeline

        return TextPipeline.load(self.folder, self.manifest.text)

    @functools.cached_property
    def writing(self) -> WritingPipeline:
        """The saved tokenizer of a language model, and how it is asked."""
        from fastserve.text.writing_pipeline import WritingPipeline

        return WritingPipeline.load(self.folder, self.manifest.text)

    def weights(self) -> dict[str, Array]:
        """Tensors by name: views into the mapped file (bfloat16 as float32)."""
        return read_weights(self.folder / WEIGHTS)

    def report(self) -> Report | None:
        """What evaluation found, where the folder holds it."""
        path = self.folder / REPORT
        if not path.is_file():
            return None
        try:
            return Report.from_json(json.loads(path.read_bytes()))
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path} is damaged: {error}") from None

    def size_bytes(self) -> int:
        """How much the files take."""
        return sum((self.folder / name).stat().st_size for name in files.read_sums(self.folder))


def _load_manifest(folder: Path, verify: bool) -> Manifest:
    sums = files.read_sums(folder)
    for name in (MANIFEST, WEIGHTS):
        if name not in sums:
            raise BundleError(f"{folder / files.SUMS} does not list {name}: it is not whole; publish it again")
    if verify:
        _raise_if_damaged(folder)
    manifest = parse_manifest(_read(folder / MANIFEST), folder / MANIFEST)
    if manifest.model_sha256 != sums[WEIGHTS]:
        raise BundleError(
            f"{folder}: {MANIFEST} was written for other weights than {WEIGHTS}; do not mix files of two models"
        )
    return manifest


def _read(path: Path) -> bytes:
    if path.is_file() and path.stat().st_size > _MOST_MANIFEST_BYTES:
        raise BundleError(f"{path} is over {_MOST_MANIFEST_BYTES:,} bytes, which no manifest is")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: it is not a FastServe model folder, or not whole") from None


def _raise_if_damaged(folder: Path) -> None:
    faults = files.verify_sums(folder)
    if faults:
        raise BundleError(f"{folder}: {'; '.join(faults)}. Publish or import the model again")
