"""The OpenAPI 3.1 document of a running server: exactly the paths, limits and models that it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastserve import __version__
from fastserve.serving import writing_openapi
from fastserve.serving.deployment import Slot
from fastserve.serving.oip import OUTPUTS
from fastserve.serving.options import ServeOptions

Json = dict[str, Any]

_ERRORS = {
    400: "The request is not what is expected; error says why.",
    401: "An API key is needed, or the one given is not known.",
    404: "There is no such model, version or path.",
    408: "The request did not arrive in time.",
    413: "The body, a text, or the number of texts is over the server's limit.",
    415: "Compressed bodies are not taken.",
    429: "The key's limit is reached; try again after Retry-After seconds.",
    431: "The headers are over the server's limit.",
    500: "The model failed on this request.",
    503: "Overloaded, starting or shutting down; try again after Retry-After seconds.",
}
_BINARY_ANSWER: Json = {
    "headers": {
        "Inference-Header-Content-Length": {
            "description": "bytes of JSON before the tensors, where an output was asked for in binary form",
            "schema": {"type": "integer"},
        }
    },
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
_ALWAYS = (400, 401, 429, 431, 503)


def document(slots: Mapping[str, Slot], options: ServeOptions) -> Json:
    """What `/openapi.json` answers."""
    names = list(slots)
    content: Json = {
        "openapi": "3.1.0",
        "info": {"title": "FastServe", "version": __version__, "description": _description(options)},
        "paths": _about_paths() | _model_paths(names, slots),
        "components": {"schemas": _schemas(options, names), "responses": _error_responses()},
    }
    if writers := _able(slots, "completions"):
        content["paths"] |= writing_openapi.paths(writers)
        further = [name for slot in slots.values() if slot.current is not None for name in slot.current.names]
        content["components"]["schemas"] |= writing_openapi.schemas([*writers, *further], options.max_choices)
    if options.api_key_file is not None:
        content["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        content["security"] = [{"key": []}]
    return content


def _able(slots: Mapping[str, Slot], verb: str) -> list[str]:
    """The models that can be asked so, as far as they are loaded."""
    return [name for name, slot in slots.items() if slot.current is not None and verb in slot.current.verbs]


def _description(options: ServeOptions) -> str:
    return (
        "Classifiers over HTTP: the KServe v1 form and the Open Inference Protocol v2; language models: the OpenAI "
        "API. Infer requests may also use the "
        "binary tensor extension (header Inference-Header-Content-Length). Limits: "
        f"{options.max_body_bytes} bytes a body, {options.max_texts} texts a request, "
        f"{options.max_characters} characters a text."
    )


def _about_paths() -> Json:
    ready, page = _ref("Ready"), {"200": _text("text/html", "Page")}
    return {
        "/": {"get": _operation("front", "Sign of life; for browsers a page to try the model", {"200": _front()})},
        "/v1/models": {"get": _operation("listModels", "The models", {"200": _json("Models", _ref("Models"))})},
        "/v2": {"get": _operation("server", "The server", {"200": _json("Server", _ref("Server"))})},
        "/v2/health/live": {
            "get": _open_operation("live", "Whether the server runs", {"200": _json("Yes", _ref("Live"))})
        },
        "/v2/health/ready": {
            "get": _open_operation(
                "ready", "Whether it can answer", {"200": _json("Yes", ready), "503": _json("No", ready)}
            )
        },
        "/metrics": {"get": _operation("metrics", "Prometheus metrics", {"200": _text("text/plain", "Metrics")})},
        "/labels": {"get": _operation("labels", "A page to try models that label texts", page)},
        "/write": {"get": _operation("write", "A page to try models that write", page)},
        "/docs": {"get": _operation("docs", "This document, for reading", page)},
        "/openapi.json": {"get": _operation("openapi", "This document", {"200": _json("OpenAPI", {"type": "object"})})},
    }


def _model_paths(names: list[str], slots: Mapping[str, Slot]) -> Json:
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": names}}
    versions = sorted({slot.current.version for slot in slots.values() if slot.current is not None})
    version = {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": versions or ["1"]},
    }
    paths: Json = {
        "/v1/models/{model}": {"get": _model_operation("v1Model", "Whether the model is ready", "ModelReady")},
        "/v1/models/{model}:predict": {
            "post": _body(_model_operation("predict", "Label texts", "Predictions", 413, 408, 415, 500), "Instances")
        },
    }
    for prefix, end, parameters in (
        ("/v2/models/{model}", "", [name]),
        ("/v2/models/{model}/versions/{version}", "Version", [name, version]),
    ):
        infer = _model_operation("infer" + end, "Label texts", "InferResponse", 413, 408, 415, 500)
        paths[prefix] = {"get": _model_operation("v2Model" + end, "Inputs, outputs and labels", "Metadata")}
        paths[f"{prefix}/ready"] = {"get": _model_operation("v2Ready" + end, "Whether it is ready", "ModelReady")}
        paths[f"{prefix}/infer"] = {"post": _body(infer, "InferRequest")}
        for path in (prefix, f"{prefix}/ready", f"{prefix}/infer"):
            paths[path]["parameters"] = parameters
    for path in ("/v1/models/{model}", "/v1/models/{model}:predict"):
        paths[path]["parameters"] = [name]
    loaded = [slot for slot in slots.values() if slot.current is not None]
    if loaded and not _able(slots, "predict"):
        paths = {path: found for path, found in paths.items() if not path.endswith((":predict", "/infer"))}
    return paths


def _operation(identifier: str, summary: str, responses: Json, *further: int) -> Json:
    errors = {str(status): {"$ref": f"#/components/responses/{status}"} for status in (*_ALWAYS, *further)}
    return {"operationId": identifier, "summary": summary, "responses": errors | responses}


def _open_operation(identifier: str, summary: str, responses: Json) -> Json:
    """One that needs no key."""
    return _operation(identifier, summary, responses) | {"security": []}


def _model_operation(identifier: str, summary: str, schema: str, *further: int) -> Json:
    responses = {"200": _json(summary, _ref(schema))}
    if schema == "InferResponse":
        responses["200"] |= _BINARY_ANSWER | {"content": responses["200"]["content"] | _BINARY_ANSWER["content"]}
    if schema == "ModelReady":
        responses["503"] = _json("Not ready", {"anyOf": [_ref("ModelReady"), _ref("Error")]})
    return _operation(identifier, summary, responses, 404, *further)


def _body(operation: Json, schema: str) -> Json:
    return operation | {"requestBody": {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(kind: str, description: str) -> Json:
    return {"description": description, "content": {kind: {"schema": {"type": "string"}}}}


def _front() -> Json:
    response = _json("Alive", {"type": "object", "properties": {"status": {"const": "alive"}}, "required": ["status"]})
    response["content"]["text/html"] = {"schema": {"type": "string"}}
    return response


def _error_responses() -> Json:
    responses: Json = {str(status): _json(text, _ref("Error")) for status, text in _ERRORS.items()}
    for status in ("429", "503"):
        responses[status]["headers"] = {
            "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}
        }
    return responses


def _object(required: Json, optional: Json | None = None) -> Json:
    """An object with these properties and no other."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _schemas(options: ServeOptions, names: Iterable[str]) -> Json:
    string, boolean, text = (
        {"type": "string"},
        {"type": "boolean"},
        {"type": "string", "maxLength": options.max_characters},
    )
    return {
        "Error": _object({"error": string}),
        "Live": _object({"live": boolean}),
        "Ready": _object({"ready": boolean}),
        "ModelReady": {
            "type": "object",
            "required": ["name", "ready"],
            "properties": {"name": string, "ready": boolean, "id": string, "object": {"const": "model"}},
        },
        "Server": _object({"name": string, "version": string, "extensions": {"type": "array", "items": string}}),
        "Models": {"type": "object", "required": ["object", "data"], "properties": {"object": {"const": "list"}}},
        **_v1_schemas(text, options),
        **_v2_schemas(text, options, names),
    }


def _v1_schemas(text: Json, options: ServeOptions) -> Json:
    scores = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}}
    label = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    instances = {
        "type": "array",
        "items": {"anyOf": [text, _object({"text": text})]},
        "minItems": 1,
        "maxItems": options.max_texts,
        "examples": [["物流很快，质量不错", "arrived late and broken"]],
    }
    prediction = _object({"label": label, "score": {"type": "number"}, "scores": scores})
    return {
        "Instances": _object({"instances": instances}),
        "Predictions": _object({"predictions": {"type": "array", "items": prediction}}),
    }


def _v2_schemas(text: Json, options: ServeOptions, names: Iterable[str]) -> Json:
    string, boolean = {"type": "string"}, {"type": "boolean"}
    size = {"type": "integer", "minimum": 1, "maximum": options.max_texts}
    shape = {
        "anyOf": [
            {"type": "array", "items": size, "minItems": 1, "maxItems": 1},
            {"type": "array", "prefixItems": [size, {"const": 1}], "minItems": 2, "maxItems": 2},
        ]
    }
    row = {"anyOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": 1}]}
    tensor = _object(
        {
            "name": {"const": "text"},
            "shape": shape,
            "datatype": {"const": "BYTES"},
            "data": {"type": "array", "items": row, "minItems": 1, "maxItems": options.max_texts},
        },
        {"parameters": _or_null(_object({}))},
    )
    output = _object({"name": {"enum": list(OUTPUTS)}}, {"parameters": _or_null(_object({}, {"binary_data": boolean}))})
    result = _object(
        {"name": {"enum": list(OUTPUTS)}, "datatype": {"enum": ["BYTES", "FP32"]}, "shape": {"type": "array"}},
        {"data": {"type": "array"}, "parameters": _object({}, {"binary_data_size": {"type": "integer"}})},
    )
    return {
        "InferRequest": _object(
            {"inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1}},
            {
                "id": _or_null(string),
                "model_name": _or_null({"enum": list(names)}),
                "parameters": _or_null(_object({}, {"binary_data_output": boolean})),
                "outputs": _or_null({"type": "array", "items": output, "maxItems": len(OUTPUTS)}),
            },
        ),
        "InferResponse": _object(
            {"model_name": string, "model_version": string, "outputs": {"type": "array", "items": result}},
            {"id": string},
        ),
        "Metadata": {
            "type": "object",
            "required": ["name", "versions", "platform", "inputs", "outputs"],
            "properties": {"name": string, "versions": {"type": "array", "items": string}, "platform": string},
        },
    }
