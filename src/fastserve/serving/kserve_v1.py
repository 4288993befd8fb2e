"""The form of TensorFlow Serving and KServe v1: {"instances": [...]} to {"predictions": [...]}."""

from __future__ import annotations

from typing import Any

from fastserve.serving.messages import HttpError, Reply, json_reply, read_object
from fastserve.serving.model import ServedModel
from fastserve.types import FloatArray


def read_request(body: bytes, max_texts: int) -> list[str]:
    """The texts of a request: strings, or objects with the one key `text`."""
    content = read_object(body)
    instances = content.get("instances")
    if len(content) != 1 or not isinstance(instances, list):
        unknown = sorted(set(content) - {"instances"})
        reason = f"the field {unknown[0]!r} is not supported" if unknown else "'instances' must be a list of texts"
        raise HttpError(400, f'{reason}; expected {{"instances": ["a text", ...]}}')
    if not instances:
        raise HttpError(400, "'instances' holds no text")
    if len(instances) > max_texts:
        raise HttpError(413, f"{len(instances)} texts in one request; at most {max_texts} are taken")
    return [item if type(item) is str else _text_of(item, row) for row, item in enumerate(instances)]


def _text_of(item: Any, row: int) -> str:
    if not isinstance(item, dict):
        raise HttpError(400, f"instance {row} must be a string or an object with 'text', found {type(item).__name__}")
    for key in item:
        if key != "text":
            raise HttpError(400, f"instance {row} has the field {key!r}, which is not supported; known: 'text'")
    text = item.get("text")
    if not isinstance(text, str):
        raise HttpError(400, f"instance {row} needs 'text', a string")
    return text


def write_reply(model: ServedModel, scores: FloatArray) -> Reply:
    """The answer; scores is float32 (N, C)."""
    return json_reply({"predictions": model.decode(scores)})
