"""What texts are written in: the share of each script, and the language that it suggests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SAMPLE = 2000
_SCRIPTS = {  # first and last code point of the letters that tell the script
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    "Han": (
        (0x2E80, 0x2FDF),
        (0x3005, 0x3007),
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x3FFFF),
    ),
    "Kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)),
    "Cyrillic": ((0x400, 0x52F),),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)),
    "Hebrew": ((0x590, 0x5FF),),
    "Thai": ((0xE00, 0xE7F),),
    "Devanagari": ((0x900, 0x97F),),
}
_HAN_WEIGHT = 4.0  # a Han character says about as much as four Latin letters: brand names do not make a text English
_LANGUAGES = {"Han": "zh", "Latin": "en", "Kana": "ja", "Hangul": "ko"}


@dataclass(frozen=True, slots=True)
class Language:
    """`name` is zh, en (any language in Latin letters), ja, ko, mixed, unknown, or the name of another script.

    shares: script to its share of all letters, empty where there are no letters.
    """

    name: str
    shares: dict[str, float]

    @property
    def has_han(self) -> bool:
        """Whether Chinese segmentation pays: a Han character says about as much as four or five Latin letters."""
        return self.shares.get("Han", 0.0) + self.shares.get("Kana", 0.0) > 0.1


def sample(texts: Sequence[str], most: int = _SAMPLE) -> list[str]:
    """At most `most` of the texts, evenly spaced: files are often sorted."""
    step = max(1, -(-len(texts) // most))
    return [texts[index] for index in range(0, len(texts), step)]


def detect(texts: Sequence[str]) -> Language:
    """The scripts and the likely language of texts, judged on an evenly spaced sample."""
    points = np.frombuffer("".join(sample(texts)).encode("utf-32-le", "surrogatepass"), np.uint32)
    counts = {name: _count(points, ranges) for name, ranges in _SCRIPTS.items()}
    total = sum(counts.values())
    shares = {name: count / total for name, count in counts.items() if count}
    return Language(_name(shares), dict(sorted(shares.items(), key=lambda item: -item[1])))


def _count(points: npt.NDArray[np.uint32], ranges: tuple[tuple[int, int], ...]) -> int:
    return sum(int(np.count_nonzero((points >= first) & (points <= last))) for first, last in ranges)


def _name(shares: dict[str, float]) -> str:
    if not shares:
        return "unknown"
    if shares.get("Kana", 0.0) > 0.1:  # Japanese is written in both
        return "ja"
    han, latin = _HAN_WEIGHT * shares.get("Han", 0.0), shares.get("Latin", 0.0)
    if han and latin and (han + latin) > 0.8:
        part = han / (han + latin)
        return "zh" if part > 0.7 else "en" if part < 0.15 else "mixed"
    most = max(shares, key=lambda script: shares[script])
    return _LANGUAGES.get(most, most) if shares[most] > 0.6 else "mixed"
