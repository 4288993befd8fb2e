"""From raw cells to a text and its labels, or to the reason why a row cannot be used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from fastserve.data.blocks import BadRow, Block, RawBlock, excerpt
from fastserve.data.columns import Mapped
from fastserve.types import LongArray

EMPTY_TEXT = "empty text"
NO_TEXT = "text is not a string"
NO_LABEL = "no label"
SEVERAL = "several labels"
NOT_BINARY = "not 0 or 1"
UNKNOWN = "label not in the training data"

_MISSING = {"", "nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "N/A", "#N/A"}
_WHOLE_FLOAT = re.compile(r"([-+]?\d+)\.0+")
_TRUTH = {"1": True, "0": False, "True": True, "False": False, "true": True, "false": False}

Labels = tuple[str, ...] | str
"""Labels of a row; a bare string is the reason why it has none."""


def check_rows(
    raw: RawBlock, mapped: Mapped, keep: Collection[str], known: Collection[str] | None, file: str
) -> tuple[Block, list[BadRow]]:
    """The usable rows of a block, and the others. `known`: labels that may occur, None for any."""
    bad = [BadRow(row.row, row.reason, row.detail, file) for row in raw.bad]
    texts = _texts(raw.columns[mapped.text])
    labels = _labels(raw, mapped, known)
    faults = [index for index, text in enumerate(texts) if text is None or (labels and isinstance(labels[index], str))]
    kept_columns = {name: [_shown(cell) for cell in raw.columns[name]] for name in keep}
    block = Block(texts, labels, raw.rows, file, kept_columns)  # type: ignore[arg-type]  # faulty rows leave below
    if not faults:
        return block, bad
    for index in faults:
        bad.append(_fault(int(raw.rows[index]), raw.columns[mapped.text][index], texts[index], labels, index, file))
    bad.sort(key=lambda row: row.row)
    return block.take(_others(len(texts), faults)), bad


def _others(count: int, faults: list[int]) -> LongArray:
    kept = np.ones(count, bool)
    kept[faults] = False
    return np.flatnonzero(kept)


def _fault(row: int, cell: Any, text: str | None, labels: list[Labels], index: int, file: str) -> BadRow:
    if text is None:
        blank = cell is None or (isinstance(cell, str) and not cell.strip()) or cell != cell
        return BadRow(row, EMPTY_TEXT if blank else NO_TEXT, "" if blank else excerpt(cell), file)
    reason, _, detail = str(labels[index]).partition(": ")
    return BadRow(row, reason, ", ".join(part for part in (detail, f"text {excerpt(text)}") if part), file)


def _texts(cells: list[Any]) -> list[str | None]:
    texts = [text_of(cell) for cell in cells]
    if has_surrogate("".join([text for text in texts if text is not None])):
        return [None if text is not None and has_surrogate(text) else text for text in texts]
    return texts


def text_of(cell: Any) -> str | None:
    """A text, or a number as text; None for what is neither, or blank."""
    if isinstance(cell, str):
        return cell if cell and not cell.isspace() else None
    if isinstance(cell, (int, float)) and not isinstance(cell, bool) and not math.isnan(cell):
        return str(cell)
    return None


def has_surrogate(text: str) -> bool:
    """Half a character, which JSON can express and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _shown(cell: Any) -> str:
    return cell if isinstance(cell, str) else "" if cell is None else label_of(cell) or ""


def label_of(cell: Any) -> str | None:
    """A label as a string: 1, "1", 1.0 and "1.0" are one label. None where there is none."""
    if cell is None:
        return None
    if isinstance(cell, float):
        if math.isnan(cell):
            return None
        return str(int(cell)) if cell.is_integer() else str(cell)
    label = str(cell).strip()
    if label in _MISSING:
        return None
    whole = _WHOLE_FLOAT.fullmatch(label)
    return whole[1] if whole else label


def _labels(raw: RawBlock, mapped: Mapped, known: Collection[str] | None) -> list[Labels]:
    if mapped.label is None:
        return []
    if isinstance(mapped.label, tuple):
        columns = [raw.columns[name] for name in mapped.label]
        return [_from_binary(mapped.label, cells) for cells in zip(*columns, strict=True)]
    memory: dict[Any, Labels] = {}
    read = _reader(mapped, known)
    found = []
    for cell in raw.columns[mapped.label]:
        try:
            labels = memory.get((cell.__class__, cell))
            if labels is None:
                labels = memory[cell.__class__, cell] = read(cell)
        except TypeError:  # a list has no hash
            labels = read(cell)
        found.append(labels)
    return found


def _reader(mapped: Mapped, known: Collection[str] | None) -> Callable[[Any], Labels]:
    def read(cell: Any) -> Labels:
        labels = _several(cell, mapped.separator) if mapped.multi_label else _single(cell)
        if known is not None and not isinstance(labels, str):
            strange = [label for label in labels if label not in known]
            if strange:
                return f"{UNKNOWN}: {', '.join(strange)}"
        return labels

    return read


def _single(cell: Any) -> Labels:
    if isinstance(cell, (list, tuple)):
        if len(cell) > 1:
            return f"{SEVERAL}: {excerpt(cell)}"
        cell = cell[0] if cell else None
    if isinstance(cell, dict):
        return f"{NO_LABEL}: {excerpt(cell)}"
    label = label_of(cell)
    return (label,) if label is not None else NO_LABEL


def _several(cell: Any, separator: str | None) -> Labels:
    """An empty list says that none applies; an empty cell says nothing."""
    if isinstance(cell, (list, tuple)):
        found = [label_of(part) for part in cell]
        return tuple(dict.fromkeys(label for label in found if label is not None))
    if label_of(cell) is None or isinstance(cell, dict):
        return NO_LABEL
    parts = str(cell).split(separator) if separator else [cell]
    labels = tuple(dict.fromkeys(label for label in map(label_of, parts) if label is not None))
    return labels or NO_LABEL


def _from_binary(names: tuple[str, ...], cells: tuple[Any, ...]) -> Labels:
    labels = []
    for name, cell in zip(names, cells, strict=True):
        value = label_of(cell)
        if value not in _TRUTH:
            return f"{NOT_BINARY if value is not None else NO_LABEL}: column '{name}' holds {excerpt(cell)}"
        if _TRUTH[value]:
            labels.append(name)
    return tuple(labels)
