"""Judge a language model: what it needed for texts it has not seen, to a Report with intervals, samples and reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import DataError
from fastserve.evaluation.bootstrap import percentile_metric, resample_means
from fastserve.evaluation.checks import Check
from fastserve.evaluation.findings import MOST_SLICES, Json, metric_json, shorten
from fastserve.evaluation.needed import FIGURES, Needed, figures, needed
from fastserve.types import LongArray, Metric, Report

_FEW_ROWS = 30
_NUM_BINS = 20
_SLICE_SHARE = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model wrote. finish_reason: stop, or length where it was cut off."""

    prompt: str
    text: str
    finish_reason: str | None = None


def evaluate_language(
    sums: npt.NDArray[Any],
    sizes: npt.NDArray[Any],
    *,
    texts: Sequence[str] | None = None,
    rows: Sequence[int] | LongArray | None = None,
    slices: Mapping[str, Sequence[str]] | None = None,
    samples: Sequence[Sample] = (),
    checks: Sequence[Check] = (),
    worst: int = 20,
    seed: int = 0,
    resamples: int = 1000,
) -> Report:
    """Loss, perplexity, bits per character and per byte with 95 % bootstrap intervals, and what stands behind them.

    sums: (N, 2), as of `Generation.score`: negative log-likelihood in nats and counted tokens of each row; sizes: (N,
    2), characters and UTF-8 bytes that these tokens stand for; texts, rows (numbers in the user's file; pieces of one
    document have the same) and the columns of `slices`: N each. The same seed gives the same report. DataError,
    WorkError: see `needed`.
    """
    documents = needed(sums, sizes, rows=rows, texts=texts).documents()
    rng = np.random.default_rng(seed)
    details = {
        "notes": list(_notes(documents, samples)),
        "totals": _totals(documents),
        "histogram": _histogram(documents),
        "worst": _worst(documents, worst),
        "samples": [asdict(sample) for sample in samples],
        "checks": [check.to_json() for check in checks],
        "slices": _slices(documents, slices or {}, len(sums), max(resamples // _SLICE_SHARE, 100), rng),
    }
    return Report("generation", len(documents), metrics_of(documents, resamples, rng), details)


def metrics_of(documents: Needed, resamples: int, rng: np.random.Generator) -> dict[str, Metric]:
    """Every figure by name with its interval over documents."""
    here = figures(documents.totals.mean(0))
    drawn = figures(resample_means(documents.totals, resamples, rng))
    return {name: percentile_metric(float(here[name]), drawn[name], highest=np.inf) for name in FIGURES}


def _totals(documents: Needed) -> Json:
    _, tokens, characters, size = documents.totals.sum(0).tolist()
    return {
        "tokens": tokens,
        "characters": int(characters),
        "bytes": int(size),
        "characters_per_token": characters / tokens,
        "bytes_per_character": size / characters,
    }


def _histogram(documents: Needed) -> Json:
    """How many documents need how many bits for a character; the ends take what lies outside the middle 98 %."""
    bits = documents.bits_per_character
    low, high = np.quantile(bits, (0.01, 0.99)).tolist()
    if low == high:
        low, high = max(low - 0.5, 0.0), high + 0.5
    counts, _ = np.histogram(bits.clip(low, high), _NUM_BINS, (low, high))
    return {"low": low, "high": high, "rows": counts.tolist()}


def _worst(documents: Needed, most: int) -> list[Json]:
    """Those that need most bits for a character; very short ones, which do so by chance, left out."""
    bits, characters = documents.bits_per_character, documents.totals[:, 2]
    enough = np.flatnonzero(characters >= np.median(characters) / 4)
    chosen = enough[np.argsort(-bits[enough], kind="stable")[:most]]
    return [_entry(documents, int(index)) for index in chosen]


def _entry(documents: Needed, index: int) -> Json:
    entry: Json = {
        "row": int(documents.rows[index]),
        "bits_per_character": float(documents.bits_per_character[index]),
        "characters": int(documents.totals[index, 2]),
    }
    text = documents.text(index)
    return entry if text is None else {**entry, "text": shorten(text)}


def _slices(
    documents: Needed, columns: Mapping[str, Sequence[str]], given: int, resamples: int, rng: np.random.Generator
) -> dict[str, Json]:
    """For each column: bits per character of its largest values, with intervals."""
    found: dict[str, Json] = {}
    for column, values in columns.items():
        if len(values) != given:
            raise DataError(f"slice column '{column}' has {len(values)} values, expected {given}: one for each row")
        cells = np.array([str(values[place]) for place in documents.places.tolist()])
        names, group, sizes = np.unique(cells, return_inverse=True, return_counts=True)
        largest = np.argsort(-sizes, kind="stable")[:MOST_SLICES]
        shown = [
            {"value": str(names[one]), **_slice(documents, np.flatnonzero(group == one), resamples, rng)}
            for one in largest
        ]
        found[column] = {"values": len(names), "shown": shown}
    return found


def _slice(documents: Needed, chosen: LongArray, resamples: int, rng: np.random.Generator) -> Json:
    part = Needed(documents.totals[chosen], documents.rows[chosen], documents.places[chosen], None)
    bits = metrics_of(part, resamples, rng)["bits_per_character"]
    return {"rows": len(chosen), "characters": int(part.totals[:, 2].sum()), "bits_per_character": metric_json(bits)}


def _notes(documents: Needed, samples: Sequence[Sample]) -> Iterator[str]:
    """What a reader must know before trusting the figures, one sentence each."""
    if len(documents) < _FEW_ROWS:
        shown = "is only one row" if len(documents) == 1 else f"are only {len(documents)} rows"
        yield f"There {shown}: the intervals say little. Evaluate on a hundred at least."
    empty = sum(not sample.text.strip() for sample in samples)
    if empty:
        yield f"{empty} of {len(samples)} samples are empty: the model ended at once."
    cut = sum(sample.finish_reason == "length" for sample in samples)
    if samples and cut > len(samples) / 2:
        yield f"{cut} of {len(samples)} samples were cut off before the model ended them."
