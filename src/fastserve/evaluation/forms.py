"""Exact rules that what a model writes must keep: lines and characters, a pattern, lengths, JSON."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from fastserve.config import Positive, Section
from fastserve.errors import DataError, NotFoundError, choices
from fastserve.evaluation.checks import Check, Json
from fastserve.evaluation.findings import shorten

PUNCTUATION = "，。！？；：、,.!?;:"
_HAN = re.compile("[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]*")


class Form(Section):
    """What a text must be. Everything that is given must hold."""

    lines: Positive | None = Field(None, description="how many lines")
    characters: Positive | list[Positive] | None = Field(
        None, description="characters of every line, or a list with those of each"
    )
    han: bool = Field(False, description="whether lines hold nothing but Chinese characters")
    separators: str = Field(PUNCTUATION, description="characters that part lines, besides line breaks")
    pattern: str | None = Field(None, description="a regular expression that the whole text must match")
    least_characters: Positive | None = Field(None, description="of the text without the white space around it")
    most_characters: Positive | None = Field(None, description="of the text without the white space around it")
    valid_json: Literal["any", "object", "array"] | None = Field(None, description="what JSON the text must be")

    @field_validator("characters")
    @classmethod
    def _for_each_line(cls, value: int | list[int] | None, info: ValidationInfo) -> int | list[int] | None:
        lines = info.data.get("lines")
        if isinstance(value, list) and lines is not None and len(value) != lines:
            raise ValueError(f"names {len(value)} lines, but `lines` is {lines}")
        return value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value

    def __str__(self) -> str:
        return ", ".join(self._words()) or "anything"

    def _words(self) -> Iterator[str]:
        if self.lines is not None:
            yield f"{self.lines} {'line' if self.lines == 1 else 'lines'}"
        if self.characters is not None:
            each = self.characters if isinstance(self.characters, int) else ", ".join(map(str, self.characters))
            yield f"{each} {'Chinese ' if self.han else ''}characters a line"
        if self.pattern is not None:
            yield f"matches {self.pattern}"
        if self.least_characters is not None:
            yield f"at least {self.least_characters:,} characters"
        if self.most_characters is not None:
            yield f"at most {self.most_characters:,} characters"
        if self.valid_json is not None:
            yield "valid JSON" if self.valid_json == "any" else f"a JSON {self.valid_json}"

    def fault(self, text: str) -> str | None:
        """Why `text` is not of this form; None where it is."""
        return next(self._faults(text.strip()), None)

    def _faults(self, text: str) -> Iterator[str]:
        if self.lines is not None or self.characters is not None or self.han:
            yield from self._line_faults(lines_of(text, self.separators))
        if self.pattern is not None and not re.fullmatch(self.pattern, text, re.DOTALL):
            yield f"does not match {self.pattern}"
        if self.least_characters is not None and len(text) < self.least_characters:
            yield f"has {len(text):,} characters, expected at least {self.least_characters:,}"
        if self.most_characters is not None and len(text) > self.most_characters:
            yield f"has {len(text):,} characters, expected at most {self.most_characters:,}"
        if self.valid_json is not None:
            yield from _json_faults(text, self.valid_json)

    def _line_faults(self, lines: Sequence[str]) -> Iterator[str]:
        expected = self.characters
        wanted = len(expected) if isinstance(expected, list) else self.lines
        if wanted is not None and len(lines) != wanted:
            yield f"has {len(lines)} {'line' if len(lines) == 1 else 'lines'}, expected {wanted}"
            return
        for number, line in enumerate(lines):
            size = expected[number] if isinstance(expected, list) else expected
            if size is not None and len(line) != size:
                yield f"line {number + 1} has {len(line)} characters, expected {size}"
            if self.han and not _HAN.fullmatch(line):
                yield f"line {number + 1} holds more than Chinese characters"


FORMS: Mapping[str, Form] = {
    "五言绝句": Form(lines=4, characters=5, han=True),
    "七言绝句": Form(lines=4, characters=7, han=True),
    "五言律诗": Form(lines=8, characters=5, han=True),
    "七言律诗": Form(lines=8, characters=7, han=True),
}
"""Forms of Tang poems, by lines and characters alone: neither rhyme nor tones are looked at."""


def find_form(name: str) -> Form:
    """A form of FORMS. NotFoundError lists them."""
    if name not in FORMS:
        raise NotFoundError(f"no form is called '{name}': {choices(name, FORMS)}")
    return FORMS[name]


def lines_of(text: str, separators: str = PUNCTUATION) -> list[str]:
    """The lines of a text, without white space around them; empty ones left out."""
    parts = re.split(f"[{re.escape(separators)}\\r\\n]", text)
    return [line for part in parts if (line := part.strip())]


def _json_faults(text: str, kind: str) -> Iterator[str]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        yield f"is no JSON: {error}"
        return
    expected: dict[str, type] = {"object": dict, "array": list}
    if kind in expected and not isinstance(value, expected[kind]):
        yield f"is a JSON {type(value).__name__}, expected an {kind}"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def check_forms(texts: Sequence[str], form: Form, *, name: str = "form", rows: Sequence[int] | None = None) -> Check:
    """The share of `texts` that are of `form`, and why the others are not. rows: their numbers, from 1 where not given.

    DataError where there is no text.
    """
    faults = [form.fault(text) for text in texts]
    numbers = range(1, len(texts) + 1) if rows is None else rows
    failures: list[Json] = [
        {"row": int(row), "text": shorten(text), "why": fault}
        for row, text, fault in zip(numbers, texts, faults, strict=True)
        if fault is not None
    ]
    return Check.of(name, str(form), [fault is None for fault in faults], failures)


def check_named_forms(texts: Sequence[str], names: Sequence[str]) -> list[Check]:
    """Each text against the form that it was asked for by name: a check for each name, in the order they occur.

    DataError where there is not one name for each text, NotFoundError for a form that does not exist.
    """
    if len(texts) != len(names):
        raise DataError(f"got {len(texts)} texts but {len(names)} names of forms: expected one for each text")
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    return [
        check_forms([texts[place] for place in at], find_form(name), name=name, rows=[place + 1 for place in at])
        for name, at in places.items()
    ]
