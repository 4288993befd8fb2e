"""After the last step: judge the kept weights and save the bundle that classifiers start from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import NetworkSpec
from fastserve.evaluation.html import report_html
from fastserve.evaluation.masked import evaluate_masked
from fastserve.training.loop import TrainingRun
from fastserve.training.masked.prepare import Prepared
from fastserve.training.masked.setup import Setup, batches
from fastserve.training.origin import Origin
from fastserve.training.runs import RunFolder
from fastserve.training.watchers import EVENTS, read_events
from fastserve.types import FloatArray


def finish(prepared: Prepared, run: TrainingRun, folder: RunFolder, origin: Origin) -> None:
    """Judge the network on the test rows (or else the validation rows); the leader saves it with its report."""
    held_out = prepared.test or prepared.validation
    scores, _ = run.scores(held_out, batches(held_out), exact=True)
    weights = run.weights()
    if run.world.leads and not folder.finished:  # machines that this one was cut off from may have finished the run
        _save(prepared, folder, origin, scores, weights)


def _save(
    prepared: Prepared, folder: RunFolder, origin: Origin, scores: FloatArray, weights: Mapping[str, Tensor]
) -> Bundle:
    held_out = prepared.test or prepared.validation
    report = evaluate_masked(scores, rows=held_out.row_numbers)
    lineage = origin.lineage()
    options, shape = origin.config.model.options, Setup(origin.config, prepared).shape.to_json()
    return save_bundle(
        folder.bundle,
        task=origin.config.task,
        labels=(),
        network=NetworkSpec(name=prepared.network, options=options, shape=shape),
        pipeline=prepared.pipeline,
        weights=weights,
        report=report,
        report_html=report_html(
            report,
            title=origin.config.name or "Masked texts",
            history=read_events(folder.path / EVENTS),
            faults=prepared.faults,
            lineage=lineage.model_dump(mode="json"),
        ),
        lineage=lineage,
    )
