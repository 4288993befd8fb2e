"""What a Hugging Face tokenizer folder says beside its tokenizer.json: which token ends a text, the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from fastserve.errors import ConfigError, choices

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_MAP, _TEMPLATE = "special_tokens_map.json", "chat_template.jinja"
_ROLES = {"eos": "the token that ends a text", "bos": "the token that begins a text", "pad": "padding"}
_MODEL_FILES = ("generation_config.json", "config.json")


def read_settings(folder: Path, tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json with the chat template and the special tokens, wherever the folder says them."""
    settings = _read_json(folder / SETTINGS)
    for name, token in _read_json(folder / _MAP).items():
        settings.setdefault(name, token)
    for role in _ROLES:
        token = _content(settings.get(f"{role}_token"))
        if token is None and role != "pad":
            token = _from_model(role, folder, tokenizer)
        if token is not None:
            settings[f"{role}_token"] = token
    template = folder / _TEMPLATE
    if template.is_file():
        settings["chat_template"] = template.read_text("utf-8")
    return settings


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


def _content(token: Any) -> str | None:
    """A special token is written as a string, or as an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _from_model(role: str, folder: Path, tokenizer: tokenizers.Tokenizer) -> str | None:
    """The token that the model's own files name by id; of several ids the first."""
    for name in _MODEL_FILES:
        number = _read_json(folder / name).get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and (token := tokenizer.id_to_token(number)) is not None:
            return str(token)
    return None


def role_of(role: str, settings: Mapping[str, Any], tokenizer: tokenizers.Tokenizer, where: str) -> int:
    """The id of the end, beginning or padding. ConfigError with the tokens that there are."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    token = settings.get(f"{role}_token")
    if not isinstance(token, str):
        raise ConfigError(
            f"{where}: the tokenizer does not say which is {_ROLES[role]} ({role}). Name it in {where}/{SETTINGS}, for "
            f'instance "{role}_token": "<|endoftext|>"; special tokens, {choices("", added)}'
        )
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ConfigError(
            f"{where}: {_ROLES[role]} ({role}) is said to be '{token}', which the tokenizer does not have; "
            f"mend {SETTINGS}: {choices(token, added)}"
        )
    return int(number)
