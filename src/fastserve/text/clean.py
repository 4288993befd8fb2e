"""Cleaning: the steps by name, and the Cleaner that runs a list of them over many texts at once.

A step is a function from text to text. The built-in ones are *walled*: they neither change NUL nor look across it, so
that many texts joined by NUL are cleaned by one call and give what each would give alone. Every pattern is linear in
the length of the text. A user's own step (`module:function`) is called text by text.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from fastserve.plugins import CLEANERS

Step = Callable[[str], str]

WALL = "\x00"
"""What parts texts in a joined block. A NUL inside a text means nothing and is dropped."""

STANDARD = ("urls", "emails", "html", "control", "nfkc", "repeats", "whitespace")

_BLOCK = 128  # texts joined in one block: few enough that most blocks skip most steps
_SHORT = 256  # characters below which a plain pattern beats an array
_INLINE = (
    "a abbr acronym b bdi bdo big cite code del dfn em font i ins kbd mark q s samp small span strike strong sub sup "
    "tt u var"
)
_OTHER = (
    "address applet area article aside audio base blockquote body br button canvas caption center col colgroup data dd "
    "details dialog dir div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 h3 h4 h5 h6 head "
    "header hr html iframe img input label legend li link main map menu meta meter nav noscript object ol optgroup "
    "option output p param picture pre progress rp rt ruby script section select slot source style summary svg table "
    "tbody td template textarea tfoot th thead time title tr track ul video wbr"
)


def _tags(names: str) -> re.Pattern[str]:
    # A name, then only attributes: '<b' of "a <b" needs its '>' before the next '<'.
    return re.compile(rf"</?(?:{'|'.join(names.split())})(?:[\s/][^<>\x00]*)?>", re.IGNORECASE)


_INLINE_TAG, _OTHER_TAG = _tags(_INLINE), _tags(_OTHER)
_HIDDEN = re.compile(r"<(script|style)(?:\s[^<>\x00]*)?>[^<\x00]*</\1\s*>", re.IGNORECASE)
_COMMENT = re.compile(r"<!(?:--[^<>\x00]*--|DOCTYPE[^<>\x00]*)>", re.IGNORECASE)


def strip_html(text: str) -> str:
    """Without tags, comments, scripts and styles, and with entities as characters; "a < b" and ">_<" stay.

    A tag inside a line (<b>) leaves nothing, any other a space. Only names of HTML elements count as tags.
    """
    if "<" in text and ">" in text:
        for pattern in (_HIDDEN, _OTHER_TAG):
            text = pattern.sub(" ", text)
        text = _COMMENT.sub(" ", _INLINE_TAG.sub("", text))
    return html.unescape(text) if "&" in text else text


_AFTER_SCHEME = re.compile(r"://[!#-;=?-~]+")
_SCHEME = re.compile(r"(?:https?|ftp)\Z", re.IGNORECASE)
_WWW = re.compile(r"\bwww\.[!#-;=?-~]+", re.IGNORECASE | re.ASCII)


def remove_urls(text: str) -> str:
    """http, https, ftp and www addresses become a space; they end at the first character outside printable ASCII."""
    if "://" in text:
        parts, last = [], 0
        for match in _AFTER_SCHEME.finditer(text):  # begins with what is rare, so that the search is fast
            scheme = _SCHEME.search(text, max(last, match.start() - 5), match.start())
            if scheme is not None:
                parts.append(text[last : scheme.start()])
                last = match.end()
        text = " ".join([*parts, text[last:]])
    return _WWW.sub(" ", text) if "www." in text or "WWW." in text else text


_DOMAIN = re.compile(r"@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_LOCAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._%+-")


def remove_emails(text: str) -> str:
    """Mail addresses become a space; "@name" stays."""
    if "@" not in text:
        return text
    parts, last = [], 0
    for match in _DOMAIN.finditer(text):
        start = match.start()
        while start > last and text[start - 1] in _LOCAL:
            start -= 1
        if start < match.start():
            parts.append(text[last:start])
            last = match.end()
    return " ".join([*parts, text[last:]])


# Control characters without those that are white space, and characters of no width; NUL is the wall.
_CONTROL = re.compile(
    "[\x01-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]+"
)


def remove_control(text: str) -> str:
    """Without control characters and characters of no width; line breaks and tabs stay."""
    return text if _is_printable(text) else _CONTROL.sub("", text)


def _is_printable(text: str) -> bool:
    """Whether there is certainly no control character, none of no width, and no white space but the blank."""
    return text.replace(WALL, "").isprintable()


_WIDE = {mark: unicodedata.normalize("NFKC", mark) for mark in "，！？：；（）～…＂．－０１２３＞＜／＋\u3000"}


def normalize(text: str) -> str:
    """Unicode NFKC: one form for characters that mean the same, full width to half width."""
    if len(text) < _SHORT:
        return unicodedata.normalize("NFKC", text)
    if text.isascii():
        return text
    for mark, plain in _WIDE.items():  # NFKC of most Chinese texts, at a tenth of the price
        text = text.replace(mark, plain)
    if unicodedata.is_normalized("NFKC", text):
        return text
    return WALL.join([unicodedata.normalize("NFKC", part) for part in text.split(WALL)])


_REPEAT = re.compile(r"([^\x000-9])\1{3,}", re.DOTALL)


def shorten_repeats(text: str) -> str:
    """Runs of four or more of the same character become three; digits are left, they are amounts."""
    if len(text) < _SHORT:
        if len(set(text)) > len(text) - 3:  # no character occurs four times
            return text
        return _REPEAT.sub(r"\1\1\1", text)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    same = points[1:] == points[:-1]
    fourth = same[2:] & same[1:-1] & same[:-2]
    if not fourth.any():
        return text
    fourth &= (points[3:] != 0) & ((points[3:] < ord("0")) | (points[3:] > ord("9")))
    kept = np.concatenate([points[:3], points[3:][~fourth]])
    return kept.tobytes().decode("utf-32-le", "surrogatepass")


def collapse_whitespace(text: str) -> str:
    """Runs of white space, line breaks included, become one blank; none at the ends."""
    if "  " in text or not _is_printable(text):
        text = " ".join(text.split())
    if f" {WALL}" in text or f"{WALL} " in text:
        text = text.replace(f" {WALL}", WALL).replace(f"{WALL} ", WALL)
    return text.strip(" ")


@functools.cache
def _simplifier() -> tuple[Step, re.Pattern[str]]:
    """OpenCC's conversion, and the characters without which it changes nothing."""
    import opencc

    convert = opencc.OpenCC("t2s").convert
    han = [chr(point) for first, last in ((0x3400, 0xA000), (0x20000, 0x30000)) for point in range(first, last)]
    changed = [one for one, other in zip(han, convert("\n".join(han)).split("\n"), strict=True) if one != other]
    return convert, re.compile(f"[{''.join(changed)}]")


def simplify(text: str) -> str:
    """Traditional Chinese to simplified, by OpenCC's dictionary of words and characters."""
    if text.isascii():
        return text
    convert, traditional = _simplifier()
    return str(convert(text)) if traditional.search(text) else text


_WALLED = frozenset(
    {strip_html, remove_urls, remove_emails, remove_control, normalize, shorten_repeats, collapse_whitespace}
)


class Cleaner:
    """Named steps in order, then lower case if wanted."""

    def __init__(self, steps: Sequence[str] | Literal["standard", "none"], *, lowercase: bool) -> None:
        named = {"standard": STANDARD, "none": ()}
        self.steps = tuple(named[steps] if isinstance(steps, str) else steps)
        self.lowercase = lowercase
        self._functions: list[Step] = [CLEANERS.load(name) for name in self.steps]

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Every text cleaned; whole characters only (a lone surrogate becomes U+FFFD)."""
        cleaned: list[str] = []
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]
            joined = WALL.join(block)
            if joined.count(WALL) != len(block) - 1:
                joined = WALL.join([text.replace(WALL, "") for text in block])
            cleaned += self._clean(joined).split(WALL)
        return cleaned

    def plain(self, text: str) -> str:
        """The same for one text, step by step: the definition that the blocks are tested against."""
        text = _mend(text.replace(WALL, ""))
        for function in self._functions:
            text = _mend(function(text).replace(WALL, ""))
        return text.lower() if self.lowercase else text

    def _clean(self, joined: str) -> str:
        joined = _mend(joined)
        for function in self._functions:
            if function in _WALLED:
                joined = function(joined)
            else:
                joined = _mend(WALL.join([function(part).replace(WALL, "") for part in joined.split(WALL)]))
        return joined.lower() if self.lowercase else joined


def _mend(text: str) -> str:
    """Surrogate pairs joined to the character that they mean, lone ones replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
