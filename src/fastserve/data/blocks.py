"""What travels inside this room: raw rows as a file has them, checked rows, and rows that cannot be used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import DataError
from fastserve.types import Example, LongArray

LISTED = 50
_EARLY = 1000  # rows before a hopeless file is given up midway
_EXCERPT = 80


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: `reason` is one of few (they are counted), `detail` says what was found."""

    row: int
    reason: str
    detail: str = ""
    file: str = ""

    def __str__(self) -> str:
        where = f"{self.file} row {self.row}" if self.file else f"row {self.row}"
        return f"{where}: {self.reason}" + (f": {self.detail}" if self.detail else "")

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "row": self.row, "reason": self.reason, "detail": self.detail}


@dataclass(slots=True)
class BadRows:
    """All bad rows of a data set: every one counted by reason, the first 50 kept."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[BadRow] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, rows: Sequence[BadRow]) -> None:
        self.counts.update(row.reason for row in rows)
        self.listed.extend(rows[: max(0, LISTED - len(self.listed))])

    def judge_early(self, rows: int, limit: int | float, address: str) -> None:
        """A number of bad rows is known to be too many at once; a share only where the file is hopeless.

        rows: usable ones so far. limit: what `data.bad_rows` allows, a number or a share.
        """
        seen = rows + self.total
        counted = isinstance(limit, int) and self.total > limit
        share = self.total / max(seen, 1)
        hopeless = isinstance(limit, float) and seen >= _EARLY and share > max(0.5, limit)
        if counted or hopeless:
            self._refuse("so far", rows, limit, address)

    def judge(self, rows: int, limit: int | float, address: str) -> None:
        """DataError where there are too many, or no usable row. A share is rounded up to whole rows, so that one fault
        does not condemn a small file.
        """
        seen = rows + self.total
        allowed = limit if isinstance(limit, int) else math.ceil(limit * seen)
        if self.total > allowed:
            self._refuse("in all", rows, limit, address)
        if not seen:
            raise DataError(f"{address} has no row: it is empty or holds only a header")
        if not rows:
            raise DataError(f"{address} has no usable row: {self.describe()}")

    def _refuse(self, when: str, rows: int, limit: int | float, address: str) -> None:
        allowed = f"{limit:,}" if isinstance(limit, int) else f"{limit:.4g} of the rows"
        raise DataError(
            f"{address}: {self.total:,} of {rows + self.total:,} rows {when} cannot be used, allowed are {allowed} "
            f"(data.bad_rows): {self.describe()}"
        )

    def describe(self, most: int = 5) -> str:
        """Counts by reason, and the first rows, one a line."""
        counts = ", ".join(f"{count:,} x {reason}" for reason, count in self.counts.most_common())
        lines = [f"  {row}" for row in self.listed[:most]]
        left = self.total - len(lines)
        return "\n".join([counts, *lines, *([f"  and {left:,} more"] if left and lines else [])])

    def to_json(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "reasons": dict(self.counts.most_common()),
            "listed": [row.to_json() for row in self.listed],
        }


@dataclass(frozen=True, slots=True)
class RawBlock:
    """Rows as a format found them: rows int64 (N,), every column a list of N cells; and the rows it had to give up."""

    rows: LongArray
    columns: dict[str, list[Any]]
    bad: list[BadRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Block:
    """Usable rows, column by column (which is several times faster than row objects); iterating gives Examples.

    rows: int64 (N,), lines in `file` counted from 1. labels is empty where the data has none.
    """

    texts: list[str]
    labels: list[tuple[str, ...]]
    rows: LongArray
    file: str = ""
    columns: Mapping[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Example:
        labels = self.labels[index] if self.labels else ()
        columns = {name: cells[index] for name, cells in self.columns.items()}
        return Example(self.texts[index], labels, int(self.rows[index]), columns)

    def take(self, index: npt.NDArray[np.integer[Any]]) -> Block:
        """The rows at the given positions, in that order."""
        at = index.tolist()
        return Block(
            [self.texts[i] for i in at],
            [self.labels[i] for i in at] if self.labels else [],
            self.rows[index],
            self.file,
            {name: [cells[i] for i in at] for name, cells in self.columns.items()},
        )


def excerpt(value: object) -> str:
    """The beginning of a cell or a line, safe to print."""
    shown = value[:200].decode("utf-8", "replace") if isinstance(value, bytes) else str(value)[:200]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    return repr(shown if len(shown) <= _EXCERPT else shown[:_EXCERPT] + "…")
