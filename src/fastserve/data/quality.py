"""The quality report of a data set: what a careful person would want to know before training on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.data.blocks import Block, excerpt
from fastserve.data.damage import find_damage
from fastserve.data.dataset import Dataset
from fastserve.data.documents import DocumentTexts
from fastserve.data.index import sort_labels
from fastserve.data.keys import first_of_each, is_among, same_forms, text_keys
from fastserve.data.near import CUT, near_duplicates
from fastserve.types import LongArray

EXAMPLES = 20
NEAR_ROWS = 200_000
"""Near duplicates are looked for among so many first texts: the memory stays bounded."""
_LANGUAGE_ROWS = 2000
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 100)
_NO_LIMIT = 10**18


@dataclass
class Finding:
    """How often something was found, and the first finds: `rows` are lines of the file, `note` says more."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, rows: Sequence[int], note: str = "") -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append({"rows": list(rows), "note": note})


@dataclass
class QualityReport:
    """All findings on one data set. `near_rows`: how many texts were compared for near duplicates.

    lengths: characters of a text at percentiles; histogram: (from, below, rows). leakage: None without other data.
    """

    name: str
    rows: int
    bad_rows: dict[str, Any]
    labels: dict[str, int]
    duplicates: Finding
    contradictions: Finding
    near_duplicates: Finding
    near_rows: int
    leakage: Finding | None
    near_leakage: Finding | None
    damage: dict[str, Finding]
    lengths: dict[str, int]
    histogram: list[tuple[int, int, int]]
    language: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        from fastserve.data.quality_text import render

        return render(self)


def check(
    dataset: Dataset | DocumentTexts,
    other: Dataset | DocumentTexts | None = None,
    language: Callable[[Sequence[str]], str] | None = None,
) -> QualityReport:
    """Read a data set once (and `other`, whose texts it should not share) and report on it.

    Bad rows are counted and listed, however many. language: names the likely language of some texts.
    """
    dataset = replace(dataset, limit=_NO_LIMIT)
    survey = _survey(dataset)
    beside = _survey(replace(other, limit=_NO_LIMIT)) if other is not None else None
    compared = [*survey.forms, *(beside.forms if beside else [])]
    near, near_leakage = _near(survey, beside)
    return QualityReport(
        name=dataset.address,
        rows=dataset.rows,
        bad_rows=dataset.bad_rows.to_json(),
        labels={label: survey.labels[label] for label in sort_labels(survey.labels)},
        duplicates=survey.duplicates(),
        contradictions=survey.contradictions(),
        near_duplicates=near,
        near_rows=len(compared),
        leakage=_leakage(survey, beside) if beside else None,
        near_leakage=near_leakage if beside else None,
        damage=survey.damage,
        lengths=_percentiles(survey.lengths),
        histogram=_histogram(survey.lengths),
        language=language(survey.sample) if language and survey.sample else None,
    )


@dataclass
class _Survey:
    """What one pass remembers. keys, kinds, rows, lengths: (N,).

    forms, starts, form_rows: of the first different texts their forms, how they begin, and their rows.
    """

    keys: LongArray
    kinds: npt.NDArray[np.int32]
    rows: LongArray
    lengths: LongArray
    labels: Counter[str]
    label_sets: list[tuple[str, ...]]
    damage: dict[str, Finding]
    forms: list[str]
    starts: list[str]
    form_rows: list[int]
    sample: list[str]

    def duplicates(self) -> Finding:
        """Texts that occur again: one find for each text, with its rows; the count is of the rows beyond the first."""
        order, starts, sizes = self._texts()
        finding = Finding()
        for text in np.flatnonzero(sizes > 1)[:EXAMPLES].tolist():
            finding.add(self._rows_of(order, starts[text], sizes[text]), f"{sizes[text]} times")
        finding.count = len(order) - len(sizes)
        return finding

    def contradictions(self) -> Finding:
        """Texts that occur with different labels: the count is of texts."""
        order, starts, sizes = self._texts()
        kinds = self.kinds[order]
        several = np.flatnonzero(np.minimum.reduceat(kinds, starts) != np.maximum.reduceat(kinds, starts))
        finding = Finding()
        for text in several[:EXAMPLES].tolist():
            found = np.unique(kinds[starts[text] : starts[text] + sizes[text]])
            named = ", ".join("+".join(self.label_sets[kind]) or "none" for kind in found.tolist())
            finding.add(self._rows_of(order, starts[text], sizes[text]), named)
        finding.count = len(several)
        return finding

    def _rows_of(self, order: LongArray, start: int, size: int) -> list[int]:
        return [int(row) for row in self.rows[order[start : start + min(size, 10)]]]

    def _texts(self) -> tuple[LongArray, LongArray, LongArray]:
        """Positions of all rows, those of one text together; where each text's begin there; and how many they are.

        Texts come in the order of their first appearance.
        """
        first = np.flatnonzero(first_of_each(self.keys))
        by_key = np.argsort(self.keys[first])
        place = by_key[np.searchsorted(self.keys[first][by_key], self.keys)]
        sizes = np.bincount(place, minlength=len(first))
        return np.argsort(place, kind="stable"), np.cumsum(sizes) - sizes, sizes


def _survey(dataset: Dataset | DocumentTexts) -> _Survey:
    kinds: dict[tuple[str, ...], int] = {}
    damage: dict[str, Finding] = {}
    near = _NearTexts()
    sample: list[str] = []
    parts: list[tuple[Any, ...]] = []
    for block in dataset.blocks():
        block_forms = same_forms(block.texts)
        keys = text_keys(block_forms)
        labels = block.labels or [()] * len(block)
        numbers = np.fromiter((kinds.setdefault(label, len(kinds)) for label in labels), np.int32, len(block))
        lengths = np.fromiter(map(len, block.texts), np.int64, len(block))
        parts.append((keys, numbers, block.rows, lengths))
        _note_damage(block, damage)
        near.add(block, block_forms, keys)
        sample.extend(block.texts[: max(0, _LANGUAGE_ROWS - len(sample))])
    keys, numbers, rows, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
    counted: Counter[str] = Counter()
    for labels_of_row, number in kinds.items():
        counted.update(dict.fromkeys(labels_of_row, int(np.count_nonzero(numbers == number))))
    found = near.forms, near.starts, near.rows
    return _Survey(keys, numbers, rows, lengths, counted, list(kinds), damage, *found, sample)


def _note_damage(block: Block, damage: dict[str, Finding]) -> None:
    for kind, index in find_damage(block.texts):
        damage.setdefault(kind, Finding()).add([int(block.rows[index])], excerpt(block.texts[index]))


@dataclass
class _NearTexts:
    """The beginnings of the first different texts, to be compared with each other."""

    forms: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def add(self, block: Block, forms: list[str], keys: LongArray) -> None:
        if len(self.forms) >= NEAR_ROWS:
            return
        for form, key, text, row in zip(forms, keys.tolist(), block.texts, block.rows.tolist(), strict=True):
            if key not in self.seen and len(self.forms) < NEAR_ROWS:
                self.seen.add(key)
                self.forms.append(form[:CUT])
                self.starts.append(text[:100])
                self.rows.append(row)


def _near(survey: _Survey, beside: _Survey | None) -> tuple[Finding, Finding]:
    """Near duplicates within the data, and between it and the other data (exact ones are reported apart)."""
    within, between = Finding(), Finding()
    forms, starts, rows = list(survey.forms), list(survey.starts), list(survey.form_rows)
    own, known = len(forms), set(forms)
    for form, start, row in zip(beside.forms, beside.starts, beside.form_rows, strict=True) if beside else ():
        if form not in known:
            forms.append(form)
            starts.append(start)
            rows.append(row)
    for earlier, later, similarity in near_duplicates(forms):
        note = f"similarity {similarity:.2f}: {excerpt(starts[later])}"
        if later < own:
            within.add([rows[earlier], rows[later]], note)
        elif earlier < own:
            between.add([rows[earlier], rows[later]], note)
    return within, between


def _leakage(survey: _Survey, beside: _Survey) -> Finding:
    """Rows whose text is also in the other data: pairs of (row here, first such row there)."""
    finding = Finding()
    keys, first = np.unique(beside.keys, return_index=True)
    shared = np.flatnonzero(is_among(survey.keys, keys))
    for at in shared[:EXAMPLES].tolist():
        there = first[np.searchsorted(keys, survey.keys[at])]
        finding.add([int(survey.rows[at]), int(beside.rows[there])])
    finding.count = len(shared)
    return finding


def _percentiles(lengths: LongArray) -> dict[str, int]:
    values = np.percentile(lengths, _PERCENTILES, method="lower")
    return {str(name): int(value) for name, value in zip(_PERCENTILES, values, strict=True)}


def _histogram(lengths: LongArray) -> list[tuple[int, int, int]]:
    """Rows by length in classes that double: 1, 2 to 3, 4 to 7, ..."""
    classes = np.bincount(np.log2(np.maximum(lengths, 1)).astype(np.int64))
    return [(2**power, 2 ** (power + 1), int(count)) for power, count in enumerate(classes)]
