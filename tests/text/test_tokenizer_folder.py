"""Tokenizers of other people: the forms of Llama, Qwen, GPT-2 and Gemma, and what such folders may lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_samples import CHATML, FAMILIES, TEXTS, folder_of, library

from fastserve.errors import ConfigError
from fastserve.text.language_tokenizer import LanguageTokenizer
from fastserve.types import Conversation, Message, Ragged

HARD = [*TEXTS[:3], "", " ", "  two  blanks \n\n\n", "😀 กา ﷽ \u0301e\u0301 \0", "tobe<think>or</think>", "a" * 300]
TALK = Conversation((Message("user", "床前?"), Message("assistant", "明月 </s><|im_end|><eos>")))


@pytest.fixture(params=FAMILIES, scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(request.param, tmp_path_factory.mktemp("tokenizers") / request.param)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> LanguageTokenizer:
    return LanguageTokenizer.read(folder)


def rows(ragged: Ragged) -> list[list[int]]:
    return [part.tolist() for part in np.split(ragged.values, ragged.offsets[1:-1])]


def test_ids_and_texts_are_the_library_s(folder: Path, tokenizer: LanguageTokenizer) -> None:
    theirs = library(folder)
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in HARD]
    assert rows(tokenizer.encode(HARD)) == expected
    assert rows(tokenizer.encode_with_offsets(HARD)[0]) == expected
    assert [tokenizer.decode(ids) for ids in expected] == [theirs.decode(ids) for ids in expected]
    assert tokenizer.vocabulary_size == max(theirs.get_vocab().values()) + 1


def test_a_stream_gives_the_same_text_token_by_token(tokenizer: LanguageTokenizer) -> None:
    for ids in rows(tokenizer.encode(HARD)):
        stream = tokenizer.stream()
        pieces = [stream.push([number]) for number in ids]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_text_cannot_write_a_special_token(folder: Path, tokenizer: LanguageTokenizer) -> None:
    marks = [token for token in tokenizer.special if token != "<unk>"]
    texts = [*marks, "a".join(marks), "".join(marks), f"be {marks[-1]} be"]
    for text, ids in zip(texts, rows(tokenizer.encode(texts)), strict=True):
        assert not set(ids) & {tokenizer.special[mark] for mark in marks}
        if tokenizer.special.get("<unk>") not in ids:
            assert tokenizer.decode(ids) == text
    assert set(library(folder).encode("".join(marks)).ids) & set(tokenizer.special.values())


def test_what_a_template_writes_is_tokenized_as_transformers_does(folder: Path, tokenizer: LanguageTokenizer) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    marks = [token for token in tokenizer.special if token != "<unk>"]
    text = f"{marks[0]}to be {marks[-1]}\n 床前{marks[-1]}{marks[0]} be"
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_parts([text])[0].tolist() == expected
    cut = len(marks[0]) + 3
    ids, parts = tokenizer.encode_parts([text[:cut], "", text[cut:]])
    assert ids.tolist() == expected
    assert set(parts.tolist()) == {0, 2}


def test_the_saved_folder_is_the_same_tokenizer(folder: Path, tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    import transformers

    state = tokenizer.save(tmp_path)
    loaded = LanguageTokenizer.load(tmp_path, state)
    before, after = (transformers.AutoTokenizer.from_pretrained(one) for one in (folder, tmp_path))
    for text in HARD:
        assert after(text)["input_ids"] == before(text)["input_ids"]
    assert rows(loaded.encode(HARD)) == rows(tokenizer.encode(HARD))
    for name in ("eos", "bos", "pad"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
        theirs = getattr(before, f"{name}_token_id")
        assert theirs is None or theirs == getattr(tokenizer, name)
    assert (after.eos_token_id, after.bos_token_id) == (before.eos_token_id, before.bos_token_id)


def test_the_template_of_a_folder_is_found_and_kept(tmp_path: Path) -> None:
    import transformers

    made = LanguageTokenizer.read(folder_of("qwen", tmp_path / "qwen"))
    assert made.template is not None
    assert made.template.source == CHATML
    assert made.bos is None
    assert made.ends == {made.eos}
    ids, weights = made.template.spans(TALK, made)
    assert made.decode(ids[weights > 0], special=True) == "明月 </s><|im_end|><eos><|im_end|>"
    made.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    messages = [{"role": message.role, "content": message.content} for message in TALK.messages]
    assert theirs.apply_chat_template(messages, tokenize=False) == made.template.render(TALK.messages)


def test_every_tokenizer_can_be_given_a_chat_template(tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    import transformers

    made = tokenizer.for_chats()
    assert made.template is not None
    ids, weights = made.template.spans(TALK, made)
    said = made.decode(ids[weights > 0], special=True)
    assert ids[weights > 0][-1] in made.ends
    assert "</s><|im_end|><eos>" in said
    made.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": message.role, "content": "床前"} for message in TALK.messages]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert made.template.encode([Message(message.role, "床前") for message in TALK.messages], made).tolist() == expected


def test_a_template_whose_end_the_tokenizer_does_not_know_is_refused(tmp_path: Path) -> None:
    tokenizer = LanguageTokenizer.read(folder_of("gpt2", tmp_path))
    with pytest.raises(ConfigError, match=r"could never end an answer.*available: <\|endoftext\|>"):
        tokenizer.for_chats(CHATML)
    assert tokenizer.template is None
    assert tokenizer.for_chats("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}").template is not None


def change(folder: Path, name: str = "tokenizer_config.json", **values: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}), "utf-8")


def test_the_token_that_ends_a_text_is_looked_for_everywhere(tmp_path: Path) -> None:
    folder = folder_of("llama3", tmp_path)
    number = library(folder).token_to_id("<|eot_id|>")
    change(folder, eos_token=None)
    with pytest.raises(ConfigError) as caught:
        LanguageTokenizer.read(folder)
    for part in ("does not say which is the token that ends a text (eos)", "tokenizer_config.json", "<|eot_id|>"):
        assert part in str(caught.value)
    assert LanguageTokenizer.read(folder, eos="<|eot_id|>").eos == number
    change(folder, "generation_config.json", eos_token_id=[number, 0])
    assert LanguageTokenizer.read(folder).eos == number
    change(folder, "special_tokens_map.json", eos_token={"content": "<|end_of_text|>"})
    assert LanguageTokenizer.read(folder).eos == library(folder).token_to_id("<|end_of_text|>")


def test_a_token_that_there_is_not_is_named(tmp_path: Path) -> None:
    folder = folder_of("llama2", tmp_path)
    change(folder, eos_token="</S>")
    with pytest.raises(ConfigError, match=r"\(eos\) is said to be '</S>', .*did you mean '</s>'\?"):
        LanguageTokenizer.read(folder)
    with pytest.raises(ConfigError, match=r"\(eos\) is said to be 'stop'"):
        LanguageTokenizer.read(folder, eos="stop")


def test_several_templates_in_the_settings_mean_the_default_one(tmp_path: Path) -> None:
    folder = folder_of("gpt2", tmp_path)
    change(folder, chat_template=[{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}])
    template = LanguageTokenizer.read(folder).template
    assert template is not None
    assert template.source == CHATML


def test_a_faulty_template_of_a_folder_is_found_at_once(tmp_path: Path) -> None:
    folder = folder_of("qwen", tmp_path)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m.content }", "utf-8")
    with pytest.raises(ConfigError, match=r"the chat template of .*, line 2: unexpected '}'"):
        LanguageTokenizer.read(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"has no tokenizer.json\. A folder with only vocab\.json"),
        ("tokenizer.json", "[1]", r"tokenizer\.json cannot be read as a tokenizer"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
            "cannot be read as a tok",
        ),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
        ("tokenizer_config.json", "[]", r"holds a list; expected a JSON object"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    folder = folder_of("gpt2", tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=message):
        LanguageTokenizer.read(folder)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (None, "has no decoder"),
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "a step 'WordPiece', which is not known here"),
        ({"type": "Replace", "pattern": {"Regex": "x"}, "content": " "}, "a step 'Replace'"),
    ],
)
def test_a_decoder_of_another_kind_is_refused(tmp_path: Path, decoder: Any, message: str) -> None:
    folder = folder_of("gpt2", tmp_path)
    change(folder, "tokenizer.json", decoder=decoder)
    with pytest.raises(ConfigError, match=message):
        LanguageTokenizer.read(folder)
