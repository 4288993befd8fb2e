"""From raw texts to answers: the text pipeline, a runtime and the task in a row."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.runtimes.base import Runtime, choose_runtime
from fastserve.errors import ConfigError
from fastserve.plugins import TASKS
from fastserve.tasks.base import LabelTask
from fastserve.types import Encoded, FloatArray, Prediction

if TYPE_CHECKING:
    from fastserve.text.pipeline import TextPipeline

PARITY_TOLERANCE = 1e-3
"""How far a probability may lie from the one that evaluation gave."""

WITHOUT_LABELS = {
    "masked": "it has learned from texts alone. Train a classifier that begins with it: fastserve train --data "
    "LABELLED --task classification model.start=MODEL",
    "generation": "it is a language model, which writes, and is not exported to other runtimes. Use fastserve serve, "
    "fastserve chat or fastserve predict, or load its folder with another program that reads the Hugging Face form",
}
"""Tasks whose models give no labels, and what to do with those."""


def check_labels(bundle: Bundle) -> None:
    """ConfigError for a bundle that gives no labels."""
    if (advice := WITHOUT_LABELS.get(bundle.manifest.task)) is not None:
        raise ConfigError(f"{bundle.folder} is of the task {bundle.manifest.task} and gives no labels: {advice}")


class Predictor:
    """Answers with a bundle. What it needs is read when it is first used; `warm` does so at once.

    runtime: a name of `plugins.RUNTIMES`, or auto. threads: cores for one call; None leaves it to the runtime.
    ConfigError for a bundle that gives no labels.
    """

    def __init__(self, bundle: Bundle, runtime: str = "auto", threads: int | None = None) -> None:
        check_labels(bundle)
        self.bundle = bundle
        self.runtime_name = runtime
        self.threads = threads

    @functools.cached_property
    def pipeline(self) -> TextPipeline:
        return self.bundle.pipeline

    @functools.cached_property
    def runtime(self) -> Runtime:
        return choose_runtime(self.bundle, self.runtime_name, threads=self.threads)

    @functools.cached_property
    def task(self) -> LabelTask:
        manifest = self.bundle.manifest
        return cast(LabelTask, TASKS.load(manifest.task)(manifest.labels, multi_label=manifest.multi_label))

    def warm(self) -> Predictor:
        """Read everything and answer once, so that the first request is as fast as the second."""
        self.predict(["warm"])
        return self

    def encode(self, texts: Sequence[str]) -> Encoded:
        return self.pipeline.encode(texts)

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """Probabilities, float32 (N, labels). A single string is one text."""
        if isinstance(texts, str):
            texts = [texts]
        if not texts:
            return np.zeros((0, len(self.bundle.manifest.labels)), np.float32)
        return self.task.probabilities(self.runtime.logits(self.pipeline.encode(texts)))

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        return self.task.decode(self.scores(texts))

    def check_parity(self, tolerance: float = PARITY_TOLERANCE) -> list[str]:
        """Answer the rows kept in the bundle; a sentence for each that differs from what evaluation gave."""
        rows = self.bundle.manifest.parity_of(self.runtime.name)
        found = self.scores([row.text for row in rows])
        return [
            fault
            for number, row in enumerate(rows, start=1)
            if (fault := _parity_fault(number, np.asarray(row.scores, np.float32), found[number - 1], tolerance))
        ]


def _parity_fault(number: int, expected: FloatArray, found: FloatArray, tolerance: float) -> str | None:
    """The row is named by its number, not by its text, since messages end up in logs."""
    if expected.shape != found.shape:
        return f"parity row {number}: {len(expected)} scores are stored, the model gives {len(found)}"
    difference = np.abs(expected - found)
    if not np.isfinite(found).all() or difference.max() > tolerance:
        worst = int(np.nanargmax(difference)) if np.isfinite(found).any() else 0
        return (
            f"parity row {number}: score {worst} is {found[worst]:.6f}, evaluation gave {expected[worst]:.6f} "
            f"(allowed difference {tolerance:g})"
        )
    return None
