"""After the last step: evaluate the kept weights and write the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import NetworkSpec, ParityRow
from fastserve.evaluation.classification import evaluate_classification
from fastserve.evaluation.html import report_html
from fastserve.evaluation.model import slice_columns
from fastserve.models.network import HasFiles
from fastserve.tasks.classification import Classification
from fastserve.training.classification.prepare import HeldOut, Prepared
from fastserve.training.classification.setup import Setup, batches
from fastserve.training.loop import TrainingRun
from fastserve.training.origin import Origin
from fastserve.training.runs import RunFolder
from fastserve.training.watchers import EVENTS, read_events
from fastserve.types import FloatArray, Report

PARITY_ROWS = 8
PARITY_CHARACTERS = 2_000


def finish(prepared: Prepared, run: TrainingRun, folder: RunFolder, origin: Origin) -> None:
    """Judge the network on the test rows (or else the validation rows); the leader saves it with its report."""
    held_out = prepared.test or prepared.validation
    logits, _ = run.scores(held_out.store, batches(held_out.store), exact=True)
    weights = run.weights()
    if run.world.leads and not folder.finished:  # machines that this one was cut off from may have finished the run
        _save(prepared, run, folder, origin, logits, weights)


def _save(
    prepared: Prepared,
    run: TrainingRun,
    folder: RunFolder,
    origin: Origin,
    logits: FloatArray,
    weights: Mapping[str, Tensor],
) -> Bundle:
    held_out = prepared.test or prepared.validation
    probabilities = Classification(prepared.labels, multi_label=prepared.multi_label).probabilities(logits)
    report = judge(prepared.labels, held_out, probabilities)
    lineage = origin.lineage()
    if prepared.start is not None:
        lineage = lineage.model_copy(update={"parent": prepared.start.reference})
    options = Setup(origin.config, prepared).options
    return save_bundle(
        folder.bundle,
        task=origin.config.task,
        labels=prepared.labels,
        multi_label=prepared.multi_label,
        network=NetworkSpec(name=prepared.network, options=options, shape=prepared.shape.to_json()),
        pipeline=prepared.pipeline,
        weights=weights,
        report=report,
        report_html=report_html(
            report,
            title=origin.config.name or origin.config.task.capitalize(),
            history=read_events(folder.path / EVENTS),
            faults=prepared.faults,
            lineage=lineage.model_dump(mode="json"),
        ),
        parity=parity_rows(held_out, probabilities),
        lineage=lineage,
        extra_files=run.network.files() if isinstance(run.network, HasFiles) else None,
    )


def judge(labels: Sequence[str], held_out: HeldOut, probabilities: FloatArray) -> Report:
    """The report on the held-out rows."""
    return evaluate_classification(
        held_out.store.targets,
        probabilities,
        labels,
        texts=held_out.texts,
        rows=held_out.store.row_numbers,
        slices=slice_columns(held_out.columns),
    )


def parity_rows(held_out: HeldOut, probabilities: FloatArray) -> list[ParityRow]:
    """A few rows, spread over the held-out ones, that a server must answer alike before it takes traffic."""
    short = [index for index, text in enumerate(held_out.texts) if len(text) <= PARITY_CHARACTERS]
    spread = np.linspace(0, len(short) - 1, min(PARITY_ROWS, len(short))).astype(int)
    chosen = [short[position] for position in spread]
    return [ParityRow(text=held_out.texts[i], scores=tuple(map(float, probabilities[i]))) for i in chosen]
