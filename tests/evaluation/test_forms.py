"""Exact rules of form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fastserve import config
from fastserve.errors import ConfigError, DataError, NotFoundError
from fastserve.evaluation.checks import Check
from fastserve.evaluation.forms import FORMS, Form, check_forms, check_named_forms, find_form, lines_of

QUATRAIN = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (QUATRAIN, None),
        (QUATRAIN.replace("，", "\n").replace("。", "\r\n"), None),
        ("  " + QUATRAIN + "\n\n", None),
        (QUATRAIN[:12], "has 2 lines, expected 4"),
        (QUATRAIN.replace("明月光", "明月"), "line 1 has 4 characters, expected 5"),
        (QUATRAIN.replace("霜", "x"), "line 2 holds more than Chinese characters"),
        (QUATRAIN.replace("霜", "□"), "line 2 holds more than Chinese characters"),
        ("", "has 0 lines, expected 4"),
        ("床前明月光", "has 1 line, expected 4"),
        (QUATRAIN.replace("床", "\U00020000"), None),
    ],
)
def test_a_quatrain_is_four_lines_of_five(text: str, fault: str | None) -> None:
    assert find_form("五言绝句").fault(text) == fault


@pytest.mark.parametrize(
    ("rule", "good", "bad", "why"),
    [
        ({"characters": [3, 5]}, "春眠不，觉晓处处闻", "春眠，觉晓处处闻", "line 1 has 2 characters, expected 3"),
        ({"pattern": r"\d+ (yes|no)"}, "12 yes", "12 yes.", r"does not match \d+ (yes|no)"),
        ({"least_characters": 3}, "abc", " ab ", "has 2 characters, expected at least 3"),
        ({"most_characters": 3}, " abc ", "abcd", "has 4 characters, expected at most 3"),
        ({"valid_json": "any"}, "[1, 2]", "[1, 2", "is no JSON: "),
        ({"valid_json": "any"}, "null", "NaN", "is no JSON: NaN"),
        ({"valid_json": "object"}, '{"a": 1}', "[1]", "is a JSON list, expected an object"),
        ({"valid_json": "array"}, "[1]", '{"a": 1}', "is a JSON dict, expected an array"),
        ({"lines": 2, "separators": "|"}, "a,b|c.", "a,b", "has 1 line, expected 2"),
    ],
)
def test_each_rule_tells_good_from_bad(rule: dict[str, Any], good: str, bad: str, why: str) -> None:
    form = config.check(Form, rule, "form")
    assert form.fault(good) is None
    assert str(form.fault(bad)).startswith(why)
    assert str(form) != "anything" or "separators" in rule


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"pattern": "("}, "is no regular expression"),
        ({"lines": 3, "characters": [1, 2]}, "names 2 lines, but `lines` is 3"),
        ({"lines": 0}, "'lines' = 0"),
        ({"line": 4}, "did you mean 'lines'"),
    ],
)
def test_wrong_rules_are_named(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.check(Form, rule, "form")
    assert message in str(caught.value)


def test_a_check_counts_and_says_why() -> None:
    check = check_forms([QUATRAIN] * 9 + ["x"], find_form("五言绝句"), name="五言绝句", rows=range(11, 21))
    assert (check.share.value, check.rows, check.passed) == (0.9, 10, 9)
    assert check.share.low is not None
    assert check.share.high is not None
    assert 0.59 < check.share.low < 0.61  # Wilson's interval of 9 in 10
    assert 0.98 < check.share.high < 0.99
    assert check.failures == ({"row": 20, "text": "x", "why": "has 1 line, expected 4"},)
    assert check.meaning == "4 lines, 5 Chinese characters a line"
    assert Check.from_json(json.loads(json.dumps(check.to_json()))) == check


def test_each_text_against_the_form_that_was_asked_for() -> None:
    checks = check_named_forms([QUATRAIN, QUATRAIN, "x"], ["五言绝句", "七言绝句", "五言绝句"])
    assert [(check.name, check.passed, check.rows) for check in checks] == [("五言绝句", 1, 2), ("七言绝句", 0, 1)]
    assert [failure["row"] for failure in checks[0].failures] == [3]
    with pytest.raises(NotFoundError, match=r"available: .*五言律诗"):
        check_named_forms(["x"], ["六言绝句"])
    with pytest.raises(DataError, match="got 1 texts but 2 names"):
        check_named_forms(["x"], ["a", "b"])
    with pytest.raises(DataError, match="nothing to check"):
        check_forms([], find_form("五言绝句"))


def test_lines_end_at_punctuation_and_line_breaks() -> None:
    assert lines_of("甲，乙。\n\n 丙！丁") == ["甲", "乙", "丙", "丁"]


def test_the_forms_that_real_poems_are_said_to_have_they_have(shared_data: Path) -> None:
    """And no poem of another form passes for one of these."""
    with gzip.open(shared_data / "gen_tang_poems" / "dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        poems = [json.loads(line) for line in lines]
    named = [poem for poem in poems if poem["form"] in FORMS]
    checks = check_named_forms([poem["text"] for poem in named], [poem["form"] for poem in named])
    assert {check.name for check in checks} == set(FORMS)
    assert all(check.share.value == 1 for check in checks)
    others = [poem["text"] for poem in poems if poem["form"] not in FORMS]
    assert not any(form.fault(text) is None for form in FORMS.values() for text in others)
