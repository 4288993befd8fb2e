"""The two forms of messages, over HTTP."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from fastserve.serving.fake import FAIL, FakeModel, FakeSettings

PREDICT = "/v1/models/sentiment:predict"
INFER = "/v2/models/sentiment/infer"
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["很好"]}


def expected(*texts: str, **settings: Any) -> list[dict[str, Any]]:
    """What the model says when it is asked without a server."""
    model = FakeModel(FakeSettings(**settings))
    return [prediction.to_json() for prediction in model.decode(model.scores(texts))]


def test_v1_answers_as_the_model_does(serve: Callable[..., Any]) -> None:
    server = serve()
    texts = ["质量不错", "broken", "", "🙂 emoji"]
    reply = server.predict(*texts)
    assert reply.status_code == 200
    assert reply.json() == {"predictions": expected(*texts)}
    objects = server.client.post(PREDICT, json={"instances": [{"text": texts[0]}]})
    assert objects.json() == {"predictions": expected(texts[0])}


def test_several_labels(serve: Callable[..., Any]) -> None:
    settings = {"labels": ["a", "b", "c", "d"], "multi_label": True}
    server = serve(settings=settings)
    assert server.predict("text").json() == {"predictions": expected("text", **settings)}
    labels = server.client.post(INFER, json={"inputs": [TENSOR]}).json()["outputs"][0]["data"]
    assert orjson.loads(labels[0]) == expected("很好", **settings)[0]["label"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not valid JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b"{}", 400, "must be a list of texts"),
        (b'{"instances": "text"}', 400, "must be a list of texts"),
        (b'{"instances": []}', 400, "holds no text"),
        (b'{"instances": [1]}', 400, "instance 0 must be a string or an object with 'text', found int"),
        (b'{"instances": [{"text": 1}]}', 400, "instance 0 needs 'text'"),
        (b'{"instances": [{"text": "a", "top": 1}]}', 400, "the field 'top'"),
        (b'{"instances": ["a"], "signature_name": "x"}', 400, "'signature_name' is not supported"),
        (b'{"instances": ["\xff\xfe"]}', 400, "not valid JSON"),
        (b'{"instances": ["\\ud800"]}', 400, "not valid JSON"),
        (b'{"instances": [' + b"[" * 100_000, 400, "not valid JSON"),
        (b'{"instances": [' + b"9" * 100_000 + b"]}", 400, ""),
        (b'{"instances": [NaN]}', 400, "not valid JSON"),
        (orjson.dumps({"instances": ["a"] * 9}), 413, "at most 8"),
        (orjson.dumps({"instances": ["a" * 101]}), 413, "longer than 100 characters"),
    ],
)
def test_v1_says_what_is_wrong(serve: Callable[..., Any], body: bytes, status: int, words: str) -> None:
    server = serve(max_texts=8, max_characters=100)
    reply = server.client.post(PREDICT, content=body)
    assert reply.status_code == status
    assert words in reply.json()["error"]


def test_v2_in_json(serve: Callable[..., Any]) -> None:
    server = serve()
    tensor = TENSOR | {"shape": [2, 1], "data": [["很好"], ["bad"]]}
    reply = server.client.post(INFER, json={"id": "abc", "inputs": [tensor]}).json()
    found = expected("很好", "bad")
    assert (reply["id"], reply["model_name"], reply["model_version"]) == ("abc", "sentiment", "1")
    label, score, scores = reply["outputs"]
    assert (label["data"], label["shape"], label["datatype"]) == ([p["label"] for p in found], [2], "BYTES")
    assert (scores["shape"], scores["datatype"]) == ([2, 2], "FP32")
    assert score["data"] == pytest.approx([p["score"] for p in found])
    assert scores["data"] == pytest.approx([value for p in found for value in p["scores"].values()])


def test_v2_only_the_outputs_that_were_asked_for(serve: Callable[..., Any]) -> None:
    server = serve()
    body = {"inputs": [TENSOR], "outputs": [{"name": "score"}]}
    assert [o["name"] for o in server.client.post(INFER, json=body).json()["outputs"]] == ["score"]


def binary(head: dict[str, Any], tail: bytes) -> tuple[bytes, dict[str, str]]:
    encoded = orjson.dumps(head)
    return encoded + tail, {"Inference-Header-Content-Length": str(len(encoded))}


def packed(*texts: str) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def test_v2_in_binary(serve: Callable[..., Any]) -> None:
    server = serve()
    tail = packed("很好", "")
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
    body, headers = binary({"inputs": [tensor], "parameters": {"binary_data_output": True}}, tail)
    reply = server.client.post(INFER, content=body, headers=headers)
    assert reply.status_code == 200, reply.text
    length = int(reply.headers["inference-header-content-length"])
    outputs = orjson.loads(reply.content[:length])["outputs"]
    sizes = [output["parameters"]["binary_data_size"] for output in outputs]
    assert length + sum(sizes) == len(reply.content)
    found = expected("很好", "")
    assert reply.content[length : length + sizes[0]] == packed(*[p["label"] for p in found])
    scores = struct.unpack("<4f", reply.content[-sizes[2] :])
    assert scores == pytest.approx([value for p in found for value in p["scores"].values()])


def changed(**changes: Any) -> dict[str, Any]:
    return {"inputs": [TENSOR | changes]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "exactly one tensor"),
        ({"inputs": [TENSOR, TENSOR]}, "exactly one tensor"),
        ({"inputs": [1]}, "must be an object"),
        (changed(name="tokens"), "no input is called 'tokens'"),
        (changed(datatype="FP32"), "expected BYTES"),
        (changed(shape=[2]), "which is 2 texts, but 1 came"),
        (changed(shape=[-1]), "expected [N] or [N, 1]"),
        (changed(shape=[1, 2]), "expected [N] or [N, 1]"),
        (changed(shape=[True]), "expected [N] or [N, 1]"),
        (changed(shape=[]), "expected [N] or [N, 1]"),
        (changed(shape="1"), "expected [N] or [N, 1]"),
        (changed(shape=[0], data=[]), "holds no text"),
        (changed(data="x"), "a list of strings"),
        (changed(data=[1]), "must be strings, found int"),
        (changed(data=[["a", "b"]]), "must be strings, found list"),
        (changed(extra=1), "the field 'extra'"),
        (changed(parameters={"x": 1}), "the field 'x'"),
        (changed(parameters=1), "must be an object"),
        ({"inputs": [TENSOR], "id": 5}, "'id' must be a string"),
        ({"inputs": [TENSOR], "model_name": "other"}, "the path names 'sentiment'"),
        ({"inputs": [TENSOR], "parameters": {"sequence_id": 1}}, "the field 'sequence_id'"),
        ({"inputs": [TENSOR], "parameters": {"binary_data_output": 1}}, "must be true or false"),
        ({"inputs": [TENSOR], "outputs": [{"name": "logits"}]}, "no output is called 'logits'"),
        ({"inputs": [TENSOR], "outputs": [{"name": "score"}, {"name": "score"}]}, "asked for twice"),
        ({"inputs": [TENSOR], "outputs": [{"name": ["score"]}]}, "no output is called"),
        ({"inputs": [TENSOR], "outputs": [{"name": "score", "parameters": {"classification": 2}}]}, "'classification'"),
        ({"inputs": [TENSOR], "outputs": "score"}, "'outputs' must be a list"),
        ({"inputs": [TENSOR], "timeout": 5}, "the field 'timeout'"),
    ],
)
def test_v2_says_what_is_wrong(serve: Callable[..., Any], content: dict[str, Any], words: str) -> None:
    reply = serve().client.post(INFER, json=content)
    assert reply.status_code == 400
    assert words in reply.json()["error"]


@pytest.mark.parametrize(
    ("tail", "size", "words"),
    [
        (packed("ab")[:-1], None, "ends within an element of 2 bytes"),
        (b"\x01\x00", None, "ends within a length"),
        (struct.pack("<i", -1) + b"a", None, "ends within an element"),
        (packed("ab"), 3, "'binary_data_size' is 3, but 6 bytes follow"),
        (packed("ab"), -6, "not negative"),
        (packed("ab"), "6", "must be a whole number"),
        (packed("ab", "c"), None, "which is 1 texts, but 2 came"),
        (struct.pack("<I", 1) + b"\xff", None, "not valid UTF-8"),
    ],
)
def test_v2_binary_rubbish(serve: Callable[..., Any], tail: bytes, size: Any, words: str) -> None:
    parameters = {"binary_data_size": len(tail) if size is None else size}
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": parameters}
    body, headers = binary({"inputs": [tensor]}, tail)
    reply = serve().client.post(INFER, content=body, headers=headers)
    assert reply.status_code == 400
    assert words in reply.json()["error"]


def test_v2_binary_and_json_data_at_once(serve: Callable[..., Any]) -> None:
    tail = packed("ab")
    body, headers = binary({"inputs": [TENSOR | {"parameters": {"binary_data_size": len(tail)}}]}, tail)
    assert "both 'data' and" in serve().client.post(INFER, content=body, headers=headers).json()["error"]


def test_v2_bytes_that_nobody_announced(serve: Callable[..., Any]) -> None:
    body, headers = binary({"inputs": [TENSOR]}, b"more")
    assert "4 bytes follow the JSON" in serve().client.post(INFER, content=body, headers=headers).json()["error"]


@pytest.mark.parametrize("length", ["-1", "1e3", "999999", "x", ""])
def test_v2_wrong_length_header(serve: Callable[..., Any], length: str) -> None:
    reply = serve().client.post(
        INFER, content=orjson.dumps({"inputs": [TENSOR]}), headers={"Inference-Header-Content-Length": length}
    )
    assert reply.status_code == 400


def test_paths_about_the_server(serve: Callable[..., Any]) -> None:
    client = serve().client
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/models/sentiment").json()["parameters"]["labels"] == ["negative", "positive"]
    assert client.get("/v2/models/sentiment/versions/1/ready").json() == {"name": "sentiment", "ready": True}
    assert client.get("/v1/models/sentiment").json().items() >= {"name": "sentiment", "ready": True}.items()
    assert client.get("/v1/models").json()["data"][0]["id"] == "sentiment"
    assert client.get("/").json() == {"status": "alive"}
    page = client.get("/", headers={"accept": "text/html"}).text
    assert "<textarea" in page
    assert page == client.get("/labels").text != client.get("/write").text
    assert client.post("/v2/models/sentiment/versions/1/infer", json={"inputs": [TENSOR]}).status_code == 200


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/models/sentimen:predict", "no model is called 'sentimen'; there is: sentiment"),
        ("/v2/models/other/infer", "no model is called 'other'"),
        ("/v2/models/sentiment/versions/2/infer", "has no version '2' here; it has 1"),
        ("/v2/models/sentiment/explode", "there is nothing at"),
        ("/v1/models/", "no model is called ''"),
        ("/etc/passwd", "there is nothing at"),
    ],
)
def test_what_is_not_there(serve: Callable[..., Any], path: str, words: str) -> None:
    reply = serve().client.post(path, json={"inputs": [TENSOR]})
    assert reply.status_code == 404
    assert words in reply.json()["error"]


def test_wrong_method(serve: Callable[..., Any]) -> None:
    reply = serve().client.get(PREDICT)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


def test_a_text_that_the_model_cannot_take_fails_alone(serve: Callable[..., Any]) -> None:
    server = serve()
    assert server.predict(FAIL).status_code == 500
    assert server.predict("fine").status_code == 200
