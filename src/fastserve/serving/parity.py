"""The gate that a classifier passes before it takes traffic: the rows kept in it, with the scores of its evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastserve.serving.deployment import Ask
from fastserve.serving.model import ParityRow, ServedModel
from fastserve.serving.options import ServeOptions

_SMOKE_TEXTS = ("", "a made-up row", "一行编造的文字")
_ROWS_AT_ONCE = 64


async def compare(model: ServedModel, ask: Ask, options: ServeOptions) -> list[str]:
    """What differs from the evaluation, a sentence a fault, texts not quoted; empty where the version may serve."""
    tolerance = model.tolerance if options.parity_tolerance == "auto" else options.parity_tolerance
    rows = list(model.parity)
    texts = [row.text for row in rows] or list(_SMOKE_TEXTS)
    faults: list[str] = []
    for size in (1, _ROWS_AT_ONCE):  # alone and in a crowd: a row's answer must not depend on its neighbours
        predictions: list[dict[str, Any]] = []
        for chunk in _chunks(texts, min(size, options.max_texts)):
            predictions += await _predictions(chunk, ask)
        if rows:
            faults += _faults(rows, predictions, tolerance)
        else:
            faults += [
                f"made-up row {n}: scores are not numbers" for n, p in enumerate(predictions, 1) if not _finite(p)
            ]
    return faults


def _chunks(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


async def _predictions(texts: list[str], ask: Ask) -> list[dict[str, Any]]:
    status, content = await ask("/v1/models/{name}:predict", {"instances": texts})
    if status != 200:
        return [{"label": f"HTTP {status}: {content.get('error')}", "scores": {}} for _ in texts]
    predictions: list[dict[str, Any]] = content["predictions"]
    return predictions


def _finite(prediction: Mapping[str, Any]) -> bool:
    scores = prediction["scores"]
    return bool(scores) and all(isinstance(score, float) and np.isfinite(score) for score in scores.values())


def _faults(rows: Sequence[ParityRow], predictions: Iterable[Mapping[str, Any]], tolerance: float) -> Iterator[str]:
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=True), start=1):
        found = prediction["scores"]
        if found.keys() != row.scores.keys():
            yield f"parity row {number}: the answer is {prediction['label']!r} instead of scores for the model's labels"
            continue
        if not _finite(prediction):
            yield f"parity row {number}: a score is not a number"
            continue
        worst = max(row.scores, key=lambda label: abs(found[label] - row.scores[label]))
        if abs(found[worst] - row.scores[worst]) > tolerance:
            yield (
                f"parity row {number}: '{worst}' has {found[worst]:.6f}, evaluation gave {row.scores[worst]:.6f} "
                f"(allowed difference {tolerance:g})"
            )
