"""Open Inference Protocol v2 over REST, with the binary tensor extension that tritonclient sends by default.

A model takes one input, `text` (BYTES, [N] or [N, 1], UTF-8), and gives three outputs: `label` (BYTES, [N]; with
several labels a text, a JSON list of them), `score` (FP32, [N]) and `scores` (FP32, [N, C], columns in the order of the
metadata's `labels`). This file knows the form of messages and nothing of queues or sockets.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from fastserve.serving.messages import BINARY, HttpError, Reply, json_reply, read_object
from fastserve.serving.model import ServedModel
from fastserve.types import FloatArray

INPUT = "text"
OUTPUTS = ("label", "score", "scores")
LENGTH_HEADER = b"inference-header-content-length"
_REQUEST_KEYS = frozenset(("id", "model_name", "parameters", "inputs", "outputs"))
_INPUT_KEYS = frozenset(("name", "shape", "datatype", "parameters", "data"))
_OUTPUT_KEYS = frozenset(("name", "parameters"))


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that was found valid. outputs: (name, whether it goes back in binary form)."""

    id: str | None
    texts: list[str]
    outputs: tuple[tuple[str, bool], ...]


def read_request(body: bytes, json_length: bytes | None, model_name: str, max_texts: int) -> InferRequest:
    """Parse and check a request; `json_length` is the value of the header that announces binary tensors."""
    content, binary = _split(body, json_length)
    _only(content, _REQUEST_KEYS, "the request")
    request_id = content.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise HttpError(400, "'id' must be a string")
    named = content.get("model_name")  # the KServe client repeats the path's name here
    if named is not None and named != model_name:
        raise HttpError(400, f"'model_name' is {_shown(named)}, but the path names '{model_name}'")
    parameters = _parameters(content, frozenset(("binary_data_output",)), "the request")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise HttpError(400, f"'inputs' must be a list of exactly one tensor, called '{INPUT}'")
    texts = _read_input(inputs[0], binary, max_texts)
    return InferRequest(request_id, texts, _read_outputs(content, _flag(parameters, "binary_data_output", False)))


def _split(body: bytes, json_length: bytes | None) -> tuple[dict[str, Any], bytes]:
    """The JSON part and the tensors behind it."""
    end = len(body)
    if json_length is not None:
        if not json_length.isdigit() or int(json_length[:20]) > len(body):
            raise HttpError(400, "Inference-Header-Content-Length must be a number not above the length of the body")
        end = int(json_length)
    return read_object(body[:end]), body[end:]


def _only(content: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise HttpError(400, f"{where} has the field {key!r}, which is not supported; known: {sorted(known)}")


def _parameters(content: Mapping[str, Any], known: frozenset[str], where: str) -> dict[str, Any]:
    parameters = content.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise HttpError(400, f"the parameters of {where} must be an object")
    _only(parameters, known, f"'parameters' of {where}")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise HttpError(400, f"parameter {name!r} must be true or false")
    return value


def _read_input(tensor: Any, binary: bytes, max_texts: int) -> list[str]:
    if not isinstance(tensor, dict):
        raise HttpError(400, "each of 'inputs' must be an object")
    _only(tensor, _INPUT_KEYS, "the input")
    if tensor.get("name") != INPUT:
        raise HttpError(400, f"no input is called {_shown(tensor.get('name'))}; the model takes '{INPUT}'")
    if tensor.get("datatype") != "BYTES":
        raise HttpError(400, f"input '{INPUT}' has datatype {_shown(tensor.get('datatype'))}, expected BYTES")
    count = _read_shape(tensor.get("shape"), max_texts)
    parameters = _parameters(tensor, frozenset(("binary_data_size",)), f"input '{INPUT}'")
    size = parameters.get("binary_data_size")
    if size is None:
        if binary:
            raise HttpError(400, f"{len(binary)} bytes follow the JSON, but no input has 'binary_data_size'")
        texts = _read_json_data(tensor.get("data"))
    else:
        texts = _read_binary_data(tensor, size, binary)
    if len(texts) != count:
        raise HttpError(
            400, f"input '{INPUT}' has shape {tensor['shape']}, which is {count} texts, but {len(texts)} came"
        )
    return texts


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _read_shape(shape: Any, max_texts: int) -> int:
    is_whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not is_whole or len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise HttpError(400, f"input '{INPUT}' has shape {_shown(shape)}, expected [N] or [N, 1]")
    count = int(math.prod(shape))
    if not count:
        raise HttpError(400, f"input '{INPUT}' holds no text")
    if count > max_texts:
        raise HttpError(413, f"{count} texts in one request; at most {max_texts} are taken")
    return count


def _read_json_data(data: Any) -> list[str]:
    if not isinstance(data, list):
        raise HttpError(400, f"input '{INPUT}' needs 'data', a list of strings")
    texts: list[str] = []
    for item in data:
        if isinstance(item, list) and len(item) == 1:  # nested form of [N, 1]
            item = item[0]
        if not isinstance(item, str):
            raise HttpError(400, f"the data of input '{INPUT}' must be strings, found {type(item).__name__}")
        texts.append(item)
    return texts


def _read_binary_data(tensor: Mapping[str, Any], size: Any, binary: bytes) -> list[str]:
    if "data" in tensor:
        raise HttpError(400, f"input '{INPUT}' has both 'data' and 'binary_data_size'")
    if type(size) is not int or size < 0:
        raise HttpError(400, "'binary_data_size' must be a whole number, not negative")
    if size != len(binary):
        raise HttpError(400, f"'binary_data_size' is {size}, but {len(binary)} bytes follow the JSON")
    return list(_unpack(binary))


def _unpack(binary: bytes) -> Iterable[str]:
    """Elements of a BYTES tensor: each a 4-byte little-endian length and as many bytes."""
    position = 0
    while position < len(binary):
        if position + 4 > len(binary):
            raise HttpError(400, "the binary tensor ends within a length")
        (length,) = struct.unpack_from("<I", binary, position)
        position += 4
        if length > len(binary) - position:
            raise HttpError(400, f"the binary tensor ends within an element of {length} bytes")
        try:
            yield binary[position : position + length].decode("utf-8")
        except UnicodeDecodeError:
            raise HttpError(400, "a text in the binary tensor is not valid UTF-8") from None
        position += length


def _read_outputs(content: Mapping[str, Any], binary_default: bool) -> tuple[tuple[str, bool], ...]:
    wanted = content.get("outputs")
    if wanted is None or wanted == []:
        return tuple((name, binary_default) for name in OUTPUTS)
    if not isinstance(wanted, list):
        raise HttpError(400, "'outputs' must be a list")
    chosen: dict[str, bool] = {}
    for output in wanted:
        if not isinstance(output, dict):
            raise HttpError(400, "each of 'outputs' must be an object with a 'name'")
        _only(output, _OUTPUT_KEYS, "an output")
        name = output.get("name")
        if name not in OUTPUTS:
            raise HttpError(400, f"no output is called {_shown(name)}; the model gives {', '.join(OUTPUTS)}")
        if name in chosen:
            raise HttpError(400, f"output '{name}' is asked for twice")
        parameters = _parameters(output, frozenset(("binary_data",)), f"output '{name}'")
        chosen[name] = _flag(parameters, "binary_data", binary_default)
    return tuple(chosen.items())


def write_reply(request: InferRequest, name: str, version: str, model: ServedModel, scores: FloatArray) -> Reply:
    """The answer; scores is float32 (N, C)."""
    head: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        head["id"] = request.id
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    values = _outputs(model, scores)
    for output, binary in request.outputs:
        datatype, shape, data = values[output]
        tensor: dict[str, Any] = {"name": output, "datatype": datatype, "shape": shape}
        if binary:
            packed = _pack(data) if datatype == "BYTES" else np.asarray(data, "<f4").tobytes()
            tensor["parameters"] = {"binary_data_size": len(packed)}
            raw.append(packed)
        else:
            tensor["data"] = data
        tensors.append(tensor)
    head["outputs"] = tensors
    reply = json_reply(head)
    if not any(binary for _, binary in request.outputs):
        return reply
    length = (("inference-header-content-length", str(len(reply.body))),)
    return Reply(200, reply.body + b"".join(raw), BINARY, length)


def _outputs(model: ServedModel, scores: FloatArray) -> dict[str, tuple[str, list[int], Any]]:
    """Output name to datatype, shape and data; a tensor's data is flat, in row-major order."""
    found = model.decode(scores)
    labels = [p.label if isinstance(p.label, str) else orjson.dumps(p.label).decode() for p in found]
    rows, columns = scores.shape
    return {
        "label": ("BYTES", [rows], labels),
        "score": ("FP32", [rows], np.array([p.score for p in found], np.float32)),
        "scores": ("FP32", [rows, columns], np.ascontiguousarray(scores).reshape(-1)),
    }


def _pack(texts: Sequence[str]) -> bytes:
    encoded = [text.encode("utf-8") for text in texts]
    return b"".join(struct.pack("<I", len(item)) + item for item in encoded)


def metadata(name: str, version: str, model: ServedModel, further: Mapping[str, Any]) -> dict[str, Any]:
    """What `GET /v2/models/{name}` says: the specification's keys, and in `parameters` what it has no key for."""
    return {
        "name": name,
        "versions": [version],
        "platform": f"fastserve_{model.runtime}",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, len(model.labels)]},
        ],
        "parameters": {"labels": list(model.labels), "multi_label": model.multi_label, **further},
    }
