"""The likely language."""

from __future__ import annotations

import pytest

from fastserve.text.language import detect


@pytest.mark.parametrize(
    ("text", "name", "has_han"),
    [
        ("物流很快，质量不错", "zh", True),
        ("买了iPhone和MacBook，很喜欢，屏幕好看", "zh", True),
        ("The food was good, and the service too", "en", False),
        ("the model is good and quick, 质量不错 物流很快 喜欢", "mixed", True),
        ("とても美味しいラーメンでした", "ja", True),
        ("정말 맛있어요", "ko", False),
        ("Очень вкусно", "Cyrillic", False),
        ("อร่อยมาก", "Thai", False),
        ("123 !!! 😀", "unknown", False),
        ("", "unknown", False),
    ],
)
def test_names(text: str, name: str, has_han: bool) -> None:
    language = detect([text] * 3)
    assert language.name == name
    assert language.has_han is has_han
    assert not language.shares or sum(language.shares.values()) == pytest.approx(1)


def test_the_whole_of_a_sorted_file_is_sampled() -> None:
    assert detect(["plain English words"] * 9_000 + ["这些都是中文"] * 9_000).name == "mixed"


def test_no_texts_and_lone_surrogates() -> None:
    assert detect([]).name == "unknown"
    assert detect(["\ud800 words"]).name == "en"
