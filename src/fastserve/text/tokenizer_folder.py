"""What a Hugging Face tokenizer folder says: its tokenizer.json, which token ends a text, the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastserve.errors import ConfigError, choices

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_MAP, _TEMPLATE = "special_tokens_map.json", "chat_template.jinja"
_ROLES = {"eos": "the token that ends a text", "bos": "the token that begins a text", "pad": "padding"}
_MODEL_FILES = ("generation_config.json", "config.json")


@dataclass(frozen=True)
class Description:
    """A tokenizer.json, parsed. where: for messages."""

    content: Mapping[str, Any]
    where: str

    @cached_property
    def added(self) -> dict[int, str]:
        """Tokens that are found in a text before any other, by id."""
        return {token["id"]: token["content"] for token in self.content.get("added_tokens") or ()}

    @cached_property
    def special(self) -> dict[str, int]:
        """Those of them that are marks and not text, and their ids."""
        return {token["content"]: token["id"] for token in self.content.get("added_tokens") or () if token["special"]}

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added ones included."""
        own = self.content["model"]["vocab"]
        known = own if isinstance(own, dict) else {token: number for number, (token, _) in enumerate(own)}
        return {**known, **{token: number for number, token in self.added.items()}}

    @cached_property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.vocabulary.values(), default=-1) + 1

    def id_of(self, role: str, settings: Mapping[str, Any]) -> int:
        """The id of eos, bos or pad. ConfigError with the tokens that there are."""
        token = settings.get(f"{role}_token")
        if not isinstance(token, str):
            raise ConfigError(
                f"{self.where}: the tokenizer does not say which is {_ROLES[role]} ({role}). Name it in {SETTINGS}, "
                f'for instance "{role}_token": "<|endoftext|>"; special tokens, {choices("", self.special)}'
            )
        if token not in self.vocabulary:
            raise ConfigError(
                f"{self.where}: {_ROLES[role]} ({role}) is said to be '{token}', which the tokenizer does not have; "
                f"mend it in {SETTINGS}: {choices(token, self.special)}"
            )
        return self.vocabulary[token]


def read_source(path: Path) -> str:
    """The text of a tokenizer.json. ConfigError where there is none."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} has no {path.name}. A folder with only vocab.json or tokenizer.model is turned into one by "
            "transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a tokenizer: {error}") from error


def describe(source: str, where: str) -> Description:
    """The parsed text of a tokenizer.json. ConfigError where it is none."""
    try:
        content = json.loads(source)
        if isinstance(content["model"]["vocab"], dict | list):
            return Description(content, where)
        fault = f"its vocabulary is a {type(content['model']['vocab']).__name__}"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        fault = repr(error)
    raise ConfigError(
        f"{where}: {TOKENIZER} cannot be read as a tokenizer: {fault}; expected that of a Hugging Face model"
    )


def read_settings(folder: Path, source: str) -> dict[str, Any]:
    """tokenizer_config.json with the chat template and the special tokens, wherever the folder says them."""
    settings = _read_json(folder / SETTINGS)
    for name, token in _read_json(folder / _MAP).items():
        if settings.get(name) is None:
            settings[name] = token
    for name in [name for name in settings if name.endswith("_token")]:
        settings[name] = _content(settings[name])
    for role in ("eos", "bos"):
        if settings.get(f"{role}_token") is None and (token := _from_model(role, folder, source)):
            settings[f"{role}_token"] = token
    settings["chat_template"] = _template(folder, settings.get("chat_template"))
    return {name: value for name, value in settings.items() if value is not None or name.endswith("_token")}


def _template(folder: Path, said: Any) -> str | None:
    """A file of its own, one in the settings, or the one called "default" of several in the settings."""
    if (folder / _TEMPLATE).is_file():
        return (folder / _TEMPLATE).read_text("utf-8")
    if isinstance(said, list):
        named = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
        said = named.get("default")
    return said if isinstance(said, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def _content(token: Any) -> Any:
    """A special token is written as a string, or as an object with its content; others (add_bos_token) as they are."""
    return token.get("content") if isinstance(token, dict) else token


def _from_model(role: str, folder: Path, source: str) -> str | None:
    """The token that the model's own files name by id; of several ids the first."""
    for name in _MODEL_FILES:
        number = _read_json(folder / name).get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int):
            described = describe(source, str(folder))
            return next((token for token, known in described.vocabulary.items() if known == number), None)
    return None
