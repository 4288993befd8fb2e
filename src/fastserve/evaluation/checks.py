"""A figure that counts: of so many answers, the share that passes, with its interval and those that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastserve.errors import DataError
from fastserve.evaluation.bootstrap import share_metric
from fastserve.types import Metric

Json = dict[str, Any]
MOST_FAILURES = 30


@dataclass(frozen=True)
class Check:
    """name: for a table; meaning: what passes, in words; share: with Wilson's interval; rows: how many were checked.

    failures: the first that do not pass, each with "row", "text" and "why".
    """

    name: str
    meaning: str
    share: Metric
    rows: int
    failures: tuple[Json, ...] = ()

    @property
    def passed(self) -> int:
        return round(self.share.value * self.rows)

    @classmethod
    def of(cls, name: str, meaning: str, passed: Sequence[bool], failures: Sequence[Json] = ()) -> Check:
        """From one answer a row. DataError where there is none."""
        if not len(passed):
            raise DataError(f"{name}: there is nothing to check; expected at least one row")
        share = share_metric(sum(map(bool, passed)), len(passed))
        return cls(name, meaning, share, len(passed), tuple(failures[:MOST_FAILURES]))

    def to_json(self) -> Json:
        share = {"value": self.share.value, "low": self.share.low, "high": self.share.high}
        return {
            "name": self.name,
            "meaning": self.meaning,
            "rows": self.rows,
            "share": share,
            "failures": list(self.failures),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Check:
        return cls(
            value["name"], value["meaning"], Metric(**value["share"]), value["rows"], tuple(value.get("failures", ()))
        )
