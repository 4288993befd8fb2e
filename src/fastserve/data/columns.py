"""Which column holds the texts and which the labels: as the user says, or guessed and said aloud."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastserve import log
from fastserve.config import DataConfig
from fastserve.data.headers import LABEL_NAMES, TEXT_NAMES, words
from fastserve.errors import DataError, choices

_MOST_LABELS = 500
_Score = Callable[[str, Sequence[Any]], float]


@dataclass(frozen=True, slots=True)
class Mapped:
    """label: one column, several 0/1 columns (then multi_label), or None for texts without labels."""

    text: str
    label: str | tuple[str, ...] | None
    separator: str | None
    multi_label: bool

    @property
    def label_columns(self) -> tuple[str, ...]:
        if self.label is None:
            return ()
        return (self.label,) if isinstance(self.label, str) else self.label


def map_columns(
    names: Sequence[str],
    sample: Mapping[str, Sequence[Any]],
    config: DataConfig,
    where: str,
    *,
    labelled: bool | None = True,
) -> Mapped:
    """Settle text and label columns of a file from its column names and some of its rows.

    labelled: True, labels are needed; None, they are taken where a column looks like them; False, they are not wanted.
    """
    text, label = config.columns.text, config.columns.label if labelled is not False else None
    wanted = [text, *([label] if isinstance(label, str) else label or [])]
    for name in wanted:
        if name is not None and name not in names:
            raise DataError(f"{where} has no column '{name}': {choices(name, names)}")
    taken = {name for name in wanted if name}
    if text is None:
        text = _best(names, sample, taken, _text_score)
    if label is None and labelled is not False:
        label = _best(names, sample, {*taken, *([text] if text else [])}, _label_score)
    if text is None:
        raise DataError(
            f"{where}: no column looks like texts: {_listing(names, sample)}. Name it: data.columns.text=..."
        )
    if label is None and labelled:
        raise DataError(
            f"{where}: no column looks like labels: {_listing(names, sample)}. Name it: data.columns.label=..."
        )
    if text in (label if isinstance(label, list) else [label]):
        raise DataError(f"{where}: column '{text}' cannot be both text and label: {choices('', names)}")
    _say(text, label, config, where)
    settled = tuple(label) if isinstance(label, list) else label
    return Mapped(text, settled, config.columns.separator, _is_multi_label(settled, sample, config, where))


def _say(text: str, label: str | list[str] | None, config: DataConfig, where: str) -> None:
    guessed = [f"texts in '{text}'"] if config.columns.text is None else []
    if config.columns.label is None and label is not None:
        guessed.append(f"labels in '{label}'")
    if guessed:
        log.say(f"{where}: {' and '.join(guessed)}, guessed; change it with data.columns.text=... or .label=...")


def _listing(names: Sequence[str], sample: Mapping[str, Sequence[Any]]) -> str:
    shown = []
    for name in names[:20]:
        first = next((str(cell) for cell in sample.get(name, ()) if cell not in (None, "")), "")
        shown.append(f"'{name}' ({first[:30]})")
    return "found " + ", ".join(shown)


def _best(names: Sequence[str], sample: Mapping[str, Sequence[Any]], taken: set[str], score: _Score) -> str | None:
    scores = {name: score(name, sample.get(name, ())) for name in names if name not in taken}
    best = max(scores, key=scores.__getitem__, default=None)  # the first of equals
    return best if best is not None and scores[best] > 0 else None


def _name_score(name: str, known: Sequence[str]) -> float:
    """2 to 3 for a name of the list (the earlier the better), 1 to 2 where one of its words is."""
    whole, parts = name.casefold().strip(), words(name)
    if whole in known:
        return 3 - known.index(whole) / len(known)
    nearest = min((known.index(part) for part in parts if part in known), default=None)
    return 0.0 if nearest is None else 2 - nearest / len(known)


def _text_score(name: str, cells: Sequence[Any]) -> float:
    """Long and varied strings are text."""
    present = [cell for cell in cells if isinstance(cell, str) and cell]
    if not present and any(cell is not None and cell != "" for cell in cells):
        return 0.0
    mean = sum(map(len, present)) / max(len(present), 1)
    numeric = sum(_is_number(cell) for cell in present) > len(present) / 2
    if cells and numeric:
        return 0.0
    varied = len(set(present)) / max(len(present), 1)
    return 2 * _name_score(name, TEXT_NAMES) + min(mean, 200) / 200 * varied + varied * 0.5


def _label_score(name: str, cells: Sequence[Any]) -> float:
    """Few values, each often, short: a label. The first column wins a tie."""
    keys = [str(cell) for cell in cells if cell is not None and cell != ""]
    distinct = len(set(keys))
    by_name = _name_score(name, LABEL_NAMES)
    if not keys:
        return by_name
    repeated = 1 - distinct / len(keys)
    short = sum(map(len, keys)) / len(keys) <= 40
    looks = short and 2 <= distinct <= _MOST_LABELS and repeated >= 0.5
    return 2 * by_name + (1 / distinct**0.25 if looks else 0.0)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_multi_label(
    label: str | tuple[str, ...] | None, sample: Mapping[str, Sequence[Any]], config: DataConfig, where: str
) -> bool:
    lists = isinstance(label, str) and any(isinstance(cell, (list, tuple)) for cell in sample.get(label, ()))
    several = config.columns.separator is not None or isinstance(label, tuple) or lists
    if config.multi_label == "auto":
        return several
    if not config.multi_label and (config.columns.separator is not None or isinstance(label, tuple)):
        raise DataError(f"{where}: data.multi_label is false, but a separator or several label columns are given")
    return config.multi_label
