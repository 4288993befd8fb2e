"""A fitted pipeline on disk: a JSON state for the manifest, and files for the bigger parts."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.errors import BundleError
from fastserve.files import write_text
from fastserve.log import warn
from fastserve.text.clean import Cleaner
from fastserve.text.encoder import TextEncoder
from fastserve.text.language import Language
from fastserve.text.ngrams import NgramOptions
from fastserve.text.segment import make_segmenter, options_of, parse_dictionary
from fastserve.text.subword import SubwordTokenizer
from fastserve.text.vocabulary import Vocabulary

VERSION = 1
VOCABULARY, TOKENIZER, DICTIONARY = "vocabulary.txt", "tokenizer.json", "user_dictionary.txt"


@dataclass(frozen=True, slots=True)
class Decided:
    """What fitting decided that the encoder does not show: names, the user's words, the language."""

    segment: str
    cutter: str | None
    words: dict[str, int]
    language: Language


def save(folder: Path, encoder: TextEncoder, decided: Decided) -> dict[str, Any]:
    """Write the files, and give the state (JSON)."""
    if isinstance(encoder.tokens, Vocabulary):
        encoder.tokens.save(folder / VOCABULARY)
    elif encoder.tokens is not None:
        encoder.tokens.save(folder / TOKENIZER)
    if decided.words:
        write_text(folder / DICTIONARY, "".join(f"{word} {count}\n" for word, count in decided.words.items()))
    return {
        "version": VERSION,
        "clean": list(encoder.cleaner.steps),
        "lowercase": encoder.cleaner.lowercase,
        "encodings": list(encoder.encodings),
        "segment": decided.segment,
        "segmenter": decided.cutter,
        "segmenter_options": options_of(encoder.segmenter) if encoder.segmenter is not None else {},
        "user_dictionary": DICTIONARY if decided.words else None,
        "tokens": {Vocabulary: VOCABULARY, SubwordTokenizer: TOKENIZER}.get(type(encoder.tokens)),
        "max_length": encoder.max_length,
        "ngrams": encoder.ngrams.to_json() if encoder.ngrams is not None else None,
        "language": {"name": decided.language.name, "shares": decided.language.shares},
        "libraries": _libraries(encoder, decided),
    }


def _libraries(encoder: TextEncoder, decided: Decided) -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    used = {"rjieba": decided.cutter == "jieba", "tokenizers": isinstance(encoder.tokens, SubwordTokenizer)}
    return {name: importlib.metadata.version(name) for name, is_used in used.items() if is_used}


def load(folder: Path, state: Mapping[str, Any]) -> tuple[TextEncoder, Decided]:
    """The encoder that `save` was given."""
    version = state.get("version")
    if version != VERSION:
        raise BundleError(
            f"{folder}: the text pipeline has format {version!r} and this FastServe reads {VERSION}; "
            "upgrade FastServe, or train again"
        )
    try:
        return _load(folder, state)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder}: the text pipeline in the manifest is damaged: {error!r}") from error


def _load(folder: Path, state: Mapping[str, Any]) -> tuple[TextEncoder, Decided]:
    words = _read_words(folder / state["user_dictionary"]) if state["user_dictionary"] else {}
    language = Language(state["language"]["name"], dict(state["language"]["shares"]))
    decided = Decided(state["segment"], state["segmenter"], words, language)
    for name, version in state["libraries"].items():
        _compare_version(folder, name, version)
    encoder = TextEncoder(
        Cleaner(state["clean"], lowercase=state["lowercase"]),
        tuple(state["encodings"]),
        make_segmenter(decided.cutter, words, state["segmenter_options"]) if decided.cutter is not None else None,
        _load_tokens(folder, state),
        state["max_length"],
        NgramOptions.from_json(state["ngrams"]) if state["ngrams"] is not None else None,
    )
    return encoder, decided


def _load_tokens(folder: Path, state: Mapping[str, Any]) -> Vocabulary | SubwordTokenizer | None:
    if state["tokens"] == VOCABULARY:
        return Vocabulary.load(folder / VOCABULARY)
    if state["tokens"] == TOKENIZER:
        return SubwordTokenizer.load(folder / TOKENIZER)
    return None


def _read_words(path: Path) -> dict[str, int]:
    try:
        return parse_dictionary(path.read_bytes().decode("utf-8").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is missing or damaged: {error}; restore the model folder from a copy") from error


def _compare_version(folder: Path, name: str, version: str) -> None:
    installed = importlib.metadata.version(name)
    if installed != version:
        warn(
            f"{folder} was made with {name} {version} and {installed} is installed: words may be cut differently and "
            f"answers may change. Install {name}=={version}, or evaluate the model again"
        )
