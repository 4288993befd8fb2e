"""What the OpenAPI document says of models that write: the routes of the OpenAI API that are there, field by field.

The schemas are those by which requests are read, so that the page cannot promise what is then refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastserve.serving.messages import SHARED_PATHS

Json = dict[str, Any]
_BODIES = {
    "completions": ("CompletionBody", "Go on from prompts", "TextCompletion"),
    "chat": ("ChatBody", "Answer a conversation", "ChatCompletion"),
    "tokenize": ("TokenizeBody", "The token ids of a text or a conversation", "Tokens"),
    "detokenize": ("DetokenizeBody", "The text of token ids", "Detokenized"),
}
_ERRORS = (400, 401, 404, 408, 413, 415, 429, 431, 500, 503)
_EXAMPLES: Mapping[str, Json] = {
    "completions": {"prompt": "Once upon a time", "max_tokens": 32},
    "chat": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32},
    "tokenize": {"prompt": "Once upon a time"},
    "detokenize": {"tokens": [5, 6, 7]},
}


def paths(names: Sequence[str]) -> Json:
    """The routes by which the models called `names` are asked."""
    return {path: {"post": _operation(verb, names)} for verb, path in SHARED_PATHS.items()}


def _operation(verb: str, names: Sequence[str]) -> Json:
    body, summary, answer = _BODIES[verb]
    content: Json = {"application/json": {"schema": _ref(answer)}}
    if verb in ("completions", "chat"):
        content["text/event-stream"] = {"schema": {}}
    example = {"model": names[0], **_EXAMPLES[verb]}
    return {
        "operationId": verb,
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(body), "example": example}},
        },
        "responses": {"200": {"description": summary, "content": content}}
        | {str(code): _error(code) for code in _ERRORS},
    }


def _errors() -> Json:
    return {str(code): _error(code) for code in _ERRORS}


def _error(status: int) -> Json:
    error: Json = {
        "description": "OpenAI's error object; error.message says what is wrong, error.param where.",
        "content": {"application/json": {"schema": _ref("OpenAIError")}},
    }
    if status in (429, 503):
        error["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}}
    return error


def schemas(names: Sequence[str], most_texts: int) -> Json:
    """Of requests by their own models; of answers as far as clients may rely on them."""
    from pydantic.json_schema import models_json_schema

    from fastserve.serving.generation import bodies

    parts = [getattr(bodies, body) for body, _, _ in _BODIES.values()]
    _, made = models_json_schema([(part, "validation") for part in parts], ref_template="#/components/schemas/{model}")
    found: Json = made["$defs"]
    count = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": most_texts}, {"type": "null"}]}
    for body in ("CompletionBody", "ChatBody"):
        found[body]["properties"]["model"] = {"enum": [*names, *([None] if len(names) == 1 else [])]}
        found[body]["properties"]["n"] = count
    return found | _answers()


def _answers() -> Json:
    string, integer = {"type": "string"}, {"type": "integer"}
    maybe = {"anyOf": [string, {"type": "null"}]}
    usage = {
        "type": "object",
        "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
        "properties": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), integer),
    }
    answer = {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {"id": string, "object": string, "created": integer, "model": string, "usage": usage}
        | {"choices": {"type": "array", "items": {"type": "object"}}},
    }
    fields = {"message": string, "type": string, "param": maybe, "code": maybe}
    return {
        "TextCompletion": answer,
        "ChatCompletion": answer,
        "Tokens": {"type": "object", "required": ["count", "max_model_len", "tokens"]},
        "Detokenized": {"type": "object", "required": ["prompt"], "properties": {"prompt": string}},
        "OpenAIError": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "object", "required": list(fields), "properties": fields}},
        },
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
