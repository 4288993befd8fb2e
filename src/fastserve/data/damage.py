"""Signs that a text was decoded or cleaned wrongly somewhere before it came here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# UTF-8 read as Latin-1 or Windows-1252: a lead byte as a letter, then a continuation byte as a sign. Left out of the
# signs: no-break space and the French quotes, which follow such letters in real French.
_SIGNS = "\u0080-\u009f\u00a1-\u00aa\u00ac-\u00ba\u00bc-\u00bf"
KINDS = {
    "replacement characters": re.compile("\ufffd"),
    "wrongly decoded text": re.compile(f"[ÃÂâãäåæçèéïð][{_SIGNS}]|â€|锟斤拷|锟斤|烫烫烫|屯屯屯"),
    "HTML entities": re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,7}|#\d{2,6}|#[xX][0-9A-Fa-f]{2,5});"),
    "control characters": re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
}


def find_damage(texts: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(kind, index of the text). A block without any is passed at the speed of one search."""
    joined = "\n".join(texts)
    for kind, pattern in KINDS.items():
        if pattern.search(joined):
            yield from ((kind, index) for index, text in enumerate(texts) if pattern.search(text))
