"""A bundle with its network in another runtime's form beside the weights, checked by that very runtime."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import fastserve
from fastserve import files
from fastserve.bundle.bundle import REPORT, REPORT_PAGE, Bundle, amend_manifest, headline
from fastserve.bundle.format import Manifest, RuntimeFile
from fastserve.bundle.predictor import Predictor, check_labels
from fastserve.bundle.runtimes.base import SPEED, automatic
from fastserve.compression.check import Check, compare
from fastserve.compression.forms import FILES, LIBRARIES, check_possible, write_form
from fastserve.compression.options import ExportOptions
from fastserve.compression.speed import times_as_fast
from fastserve.config import DataConfig
from fastserve.errors import UserError
from fastserve.evaluation.classification import evaluate_classification
from fastserve.evaluation.html import report_html
from fastserve.evaluation.model import Answered, answer, slice_columns
from fastserve.log import say, warn
from fastserve.registry import Registry, Version
from fastserve.registry.store import copy_bundle
from fastserve.types import Report

FEW_TEXTS = 1000
"""Under so many, half a point of accuracy is a handful of texts."""
_MADE_UP = ("", "a made-up row", "一行编造的文字")


@dataclass(frozen=True, slots=True)
class Exported:
    """The new bundle, what the check found, and the runtime that `auto` now takes here."""

    bundle: Bundle
    options: ExportOptions
    check: Check
    serves: str
    version: Version | None = None

    @property
    def passed(self) -> bool:
        return self.bundle.manifest.runtimes[self.options.runtime].passed

    @property
    def speed(self) -> float:
        """How many times as fast as what would answer without it, with one thread."""
        return self.bundle.manifest.runtimes[self.options.runtime].check[SPEED]


def export_as(
    bundle: Bundle, options: ExportOptions, *, version: Version | None, name: str | None = None, out: Path | None = None
) -> Exported:
    """`export` to the folder `out`, or else `publish` under `name`, which is by default the name of `version`.

    version: where `bundle` stands in the registry. UserError where both or none of the places are known.
    """
    if name is not None and out is not None:
        raise UserError("a name publishes and a folder does not (--name and --out): give one of them")
    parent = version.reference if version else None
    target = name or (version.name if version else None)
    if out is not None:
        return export(bundle, out, options, parent=parent)
    if target is None:
        raise UserError(
            f"{bundle.folder} is a folder and has no name to publish under: say which, or name another folder "
            "(--name NAME or --out FOLDER)"
        )
    return publish(bundle, target, options, parent=parent)


def publish(bundle: Bundle, name: str, options: ExportOptions, *, parent: str | None = None) -> Exported:
    """`export`, as the next version of `name`."""
    with tempfile.TemporaryDirectory() as scratch:
        made = export(bundle, Path(scratch) / "model", options, parent=parent)
        version = Registry().publish(made.bundle.folder, name)
    return replace(made, bundle=Bundle(version.path, made.bundle.manifest), version=version)


def export(bundle: Bundle, folder: Path, options: ExportOptions, *, parent: str | None = None) -> Exported:
    """Write `bundle` with its network in the form of `options.runtime` to `folder`, which must not exist.

    The form is kept whatever its check finds, but `auto` takes only one that passed and is faster. parent: the
    reference of `bundle`.
    UserError where int8 has no data to be checked on, ConfigError where the network has no such form or the bundle
    gives no labels.
    """
    check_labels(bundle)
    check_possible(options)
    with files.new_folder(folder) as temporary:
        copy_bundle(bundle.folder, temporary)
        say(f"writing the network as {options.form}")
        write_form(bundle, temporary, options)
        candidate = Bundle(temporary, _unchecked(bundle.manifest, options, parent))
        amend_manifest(temporary, candidate.manifest, FILES[options.runtime])
        check, answered = _check(bundle, candidate, options)
        texts = answered.texts if answered else [row.text for row in bundle.manifest.parity]
        speed = times_as_fast(candidate, options.runtime, texts or _MADE_UP)
        manifest = _checked(candidate, options, check, speed)
        serves = automatic(Bundle(temporary, manifest))
        if serves == options.runtime:
            manifest = _with_report(candidate, manifest, _report(candidate, options, check, answered))
        amend_manifest(temporary, manifest, (REPORT, REPORT_PAGE))
    _tell(options, manifest.runtimes[options.runtime], serves)
    return Exported(Bundle(folder, manifest), options, check, serves)


def _unchecked(before: Manifest, options: ExportOptions, parent: str | None) -> Manifest:
    """The manifest that names the new form, which has not passed yet, before those of other runtimes."""
    others = {name: form for name, form in before.runtimes.items() if name != options.runtime}
    libraries = {name: metadata.version(name) for name in LIBRARIES[options.runtime]}
    lineage = before.lineage.model_copy(
        update={"parent": parent or before.lineage.parent, "versions": before.lineage.versions | libraries}
    )
    return before.model_copy(
        update={
            "fastserve": fastserve.__version__,
            "created": datetime.now(UTC).replace(microsecond=0),
            "lineage": lineage,
            "runtimes": {options.runtime: RuntimeFile(file=FILES[options.runtime][0], passed=False), **others},
        }
    )


def _check(bundle: Bundle, candidate: Bundle, options: ExportOptions) -> tuple[Check, Answered | None]:
    """The new form, run by its runtime from the files just written, against torch."""
    pair = [Predictor(bundle, "torch"), Predictor(candidate, options.runtime)]
    multi_label = bundle.manifest.multi_label
    if options.data is None:
        texts = [row.text for row in bundle.manifest.parity] or list(_MADE_UP)
        before, after = (predictor.scores(texts) for predictor in pair)
        return compare(before, after, None, multi_label=multi_label), None
    answered = answer(pair, options.data, DataConfig(columns=options.columns))
    if options.int8 and len(answered.texts) < FEW_TEXTS:
        weight = 100 / len(answered.texts)
        warn(f"{options.data} has {len(answered.texts):,} texts: one answer is {weight:.1f} points; check on more")
    before, after = answered.probabilities
    return compare(before, after, answered.targets, multi_label=multi_label), answered


def _checked(candidate: Bundle, options: ExportOptions, check: Check, speed: float) -> Manifest:
    """The manifest with the outcome, and with what a server that runs the new form must answer to the parity rows."""
    manifest = candidate.manifest
    scores = Predictor(candidate, options.runtime).scores([row.text for row in manifest.parity])
    form = manifest.runtimes[options.runtime].model_copy(
        update={
            "passed": check.passes(options.limits),
            "check": {**check.figures(), SPEED: speed},
            "parity": tuple(tuple(map(float, row)) for row in scores),
        }
    )
    return manifest.model_copy(update={"runtimes": {**manifest.runtimes, options.runtime: form}})


def _report(candidate: Bundle, options: ExportOptions, check: Check, answered: Answered | None) -> Report | None:
    """What is known about the answers of the form that serves: measured on the data, or else by comparison."""
    if answered is None:
        before = candidate.report()
        note = (
            f"These figures were measured before the network was written as {options.form}, which now answers. "
            f"That form was compared with torch: {check.describe()}."
        )
    else:
        before = evaluate_classification(
            answered.targets,
            answered.probabilities[1],
            candidate.manifest.labels,
            texts=answered.texts,
            rows=answered.rows,
            slices=slice_columns(answered.columns),
        )
        note = f"Measured with {options.form}, which answers. Compared with torch: {check.describe()}."
    if before is None:
        return None
    return replace(before, details={**before.details, "notes": [*before.details.get("notes", ()), note]})


def _with_report(candidate: Bundle, manifest: Manifest, report: Report | None) -> Manifest:
    """Write the report beside the form; the manifest with its headline figures."""
    if report is None:
        return manifest
    files.write_json(candidate.folder / REPORT, report.to_json())
    path = candidate.folder / REPORT_PAGE
    earlier = path.read_text("utf-8") if path.is_file() else None
    title = str(manifest.lineage.config.get("name") or manifest.task.capitalize())
    page = report_html(report, title=title, lineage=manifest.lineage.model_dump(mode="json"), earlier=earlier)
    files.write_text(path, page)
    return manifest.model_copy(update={"metrics": headline(report)})


def _tell(options: ExportOptions, form: RuntimeFile, serves: str) -> None:
    if not form.passed:
        warn(
            f"{options.form} did not pass: allowed are {options.max_drop:g} points less accuracy and at least "
            f"{options.min_agreement:.1%} same answers; '{serves}' goes on answering"
        )
    elif serves != options.runtime:
        say(
            f"{options.form} is {form.check[SPEED]:.2f} times as fast as the usual runtime; '{serves}' goes on "
            f"answering, since it is faster here; ask for runtime {options.runtime} to use it all the same"
        )
