"""Cleaning: what each step does, that blocks equal single texts, and that no text makes it slow."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.errors import NotFoundError
from fastserve.plugins import CLEANERS
from fastserve.text.clean import STANDARD, Cleaner

PARTS = [
    "<b>", "</p>", "<br/>", "<!-- x -->", "<script>x</script>", "<", ">", "&amp;", "&lt",
    "&#20320;", "&", ">_<", "http://a.cn/b?c=1", "HTTPS://X.Y",
    "www.a.com", "://", "me@a.com", "@name", "\u200b", "\x07", "\x00", "\ud800", "\ud83d\ude00",
    "，", "！", "…", "Ａ", "㌔", "\u3000", "é", "e\u0301",
    "aaaa", "！！！！！", "10000", "    ", " ", "\n", "\t", "\r\n",
    "\x85", "\u2028", "國", "好", "ΑΣ", "İ", "ﬁ", "😀😀😀😀",
]  # fmt: skip
TEXTS = st.lists(
    st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=5), st.characters()), max_size=12).map("".join),
    min_size=1,
    max_size=8,
)


def clean(step: str, text: str) -> str:
    return Cleaner([step], lowercase=False)([text])[0]


@settings(max_examples=300, deadline=None)
@given(texts=TEXTS, filler=st.sampled_from(["", "x" * 300, "好" * 300, "，a " * 100]))
def test_blocks_equal_single_texts(texts: list[str], filler: str) -> None:
    texts = [*texts, filler, ""]
    for steps, lowercase in ((STANDARD, True), ((*reversed(STANDARD),), False), ((), True)):
        cleaner = Cleaner(list(steps), lowercase=lowercase)
        assert cleaner(texts) == [cleaner.plain(text) for text in texts]


@settings(max_examples=200, deadline=None)
@given(texts=TEXTS, step=st.sampled_from([*CLEANERS.builtin]))
def test_every_step_alone_equals_single_texts(texts: list[str], step: str) -> None:
    cleaner = Cleaner([step], lowercase=False)
    padded = [text + "好，" * 200 for text in texts] + texts
    assert cleaner(padded) == [cleaner.plain(text) for text in padded]


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("html", "<p>好&nbsp;<b>吃</b></p>", " 好\xa0吃 "),
        ("html", "a < b and c > d, >_<, <3", "a < b and c > d, >_<, <3"),
        ("html", "x<y and y>z", "x<y and y>z"),
        ("html", "<script>var a = 1;</script>ok<!-- no -->", " ok "),
        ("html", "AT&T &amp; &#20320;", "AT&T & 你"),
        ("html", "<a href='x'>link</a><br/>", "link "),
        ("urls", "看http://t.cn/zW好看 www.a.com/x?y=1 too", "看 好看   too"),
        ("urls", "a://b and C:// d", "a://b and C:// d"),
        ("emails", "写信me.x@a-b.com.cn吧 @name a@b", "写信 吧 @name a@b"),
        ("control", "a\u200bb\x07c\td\ufeff", "abc\td"),
        ("nfkc", "ＡＢＣ，１２３", "ABC,123"),
        ("repeats", "好好好好好 !!!!!! aaa 10000", "好好好 !!! aaa 10000"),
        ("whitespace", "  a \t\n b\u3000c  ", "a b c"),
        ("simplified", "國語 漢字 hello", "国语 汉字 hello"),
    ],
)
def test_steps(step: str, text: str, expected: str) -> None:
    assert clean(step, text) == expected
    assert clean(step, text + "。" * 0) == expected


def test_standard_on_a_real_mess() -> None:
    text = "　<p>太<b>好</b>了！！！！！！</p>\r\n见 http://t.cn/abc 或 a@b.com &gt;_&lt; ＡＢＣ\u200b "
    assert Cleaner("standard", lowercase=True)([text]) == ["太好了!!! 见 或 >_< abc"]


def test_none_keeps_the_text_but_nul_and_surrogates() -> None:
    assert Cleaner("none", lowercase=False)(["a\n <b> \x00\ud800"]) == ["a\n <b> \ufffd"]


def test_unknown_step_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'html'"):
        Cleaner(["htm"], lowercase=False)


def shout(text: str) -> str:
    """A user's own step; it does not know of blocks."""
    return f"{len(text)}:{text.upper()}\x00"


def test_own_step_is_called_text_by_text() -> None:
    assert Cleaner([f"{__name__}:shout", "whitespace"], lowercase=False)(["ab ", "c"]) == ["3:AB", "1:C"]


@pytest.mark.parametrize(
    "evil",
    ["<b " * 60_000, "<!--" * 60_000, "<script>" * 30_000, "&" * 200_000, "http://" * 40_000, "://" + "." * 200_000,
     "a@" * 100_000, "@a." * 80_000, "a." * 100_000 + "@", "aaab" * 60_000, " \t" * 100_000, "<!--a" * 40_000 + "-->"],
)  # fmt: skip
def test_linear_time(evil: str) -> None:
    cleaner = Cleaner("standard", lowercase=True)
    start = time.process_time()
    cleaner([evil])
    assert time.process_time() - start < 2.0


def test_nfkc_equals_unicodedata() -> None:
    text = "，！？：；（）～…＂．－０ ﬁ ㌔ e\u0301 한국 ½" * 20
    assert clean("nfkc", text) == unicodedata.normalize("NFKC", text)
