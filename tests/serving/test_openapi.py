"""The OpenAPI document describes the server, and the server keeps to it under schemathesis."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streaming import is_empty

Serve = Callable[..., Any]
SECRET = "correct-horse-battery"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,ignored_auth"
)


def test_every_route_is_documented(serve: Serve) -> None:
    server = serve()
    paths = set(server.client.get("/openapi.json").json()["paths"])
    served = {path.replace("/sentiment", "/{model}") for path in server.node.app._routes}
    assert served <= paths
    assert {path for path in paths if "/versions/" not in path} == served


def test_the_document_is_valid(serve: Serve) -> None:
    validator = pytest.importorskip("jsonschema_rs", reason="comes with schemathesis (extra 'test')")
    document = serve().client.get("/openapi.json").json()
    for name, schema in document["components"]["schemas"].items():
        validator.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
        assert isinstance(name, str)


def fuzz(server: Any, tmp_path: Path, examples: int, seconds: int) -> None:
    if shutil.which("schemathesis", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("needs schemathesis (extra 'test')")
    (tmp_path / "schemathesis.toml").write_text(
        "[checks.negative_data_rejection]\nexpected-statuses = [400, 401, 404, 405, 413, 415, 431]\n"
    )
    key = f"Authorization: Bearer {SECRET}"
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json", "--header", key,
        "--checks", CHECKS, "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing",
        "--seed", "1", "--no-color", "--generation-database", "none", "--request-timeout", "10",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.client.get("/v2/health/ready").json() == {"ready": True}


def fuzz_labels(serve: Serve, tmp_path: Path, examples: int, seconds: int) -> None:
    (tmp_path / "keys").write_text(SECRET)
    server = serve(api_key_file=str(tmp_path / "keys"), max_texts=64, max_characters=500)
    fuzz(server, tmp_path, examples, seconds)
    counts = server.node.slots["sentiment"].current.runner.batcher.counts
    assert counts.accepted > 20, "the fuzzer must get through to the model"
    assert counts.accepted == counts.results + counts.errors + counts.cancelled


def test_schemathesis(serve: Serve, tmp_path: Path) -> None:
    fuzz_labels(serve, tmp_path, examples=8, seconds=120)


@pytest.mark.heavy
def test_schemathesis_for_longer(serve: Serve, tmp_path: Path) -> None:
    fuzz_labels(serve, tmp_path, examples=150, seconds=900)


@pytest.mark.heavy
def test_schemathesis_on_what_writes(write: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(SECRET)
    server = write({"longest": 200}, api_key_file=str(tmp_path / "keys"))
    fuzz(server, tmp_path, examples=60, seconds=900)
    assert is_empty(server.url, headers={"Authorization": f"Bearer {SECRET}"})


def test_what_writes_is_documented_as_it_is_read(write: Serve) -> None:
    validator = pytest.importorskip("jsonschema_rs", reason="comes with schemathesis (extra 'test')")
    server = write()
    document = server.client.get("/openapi.json").json()
    served = {path.replace("/poet", "/{model}") for path in server.node.app._routes}
    assert {path for path in document["paths"] if "/versions/" not in path} == served
    schemas = document["components"]["schemas"]
    defined = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": {"schemas": schemas}}
    for name in schemas:
        validator.validator_for({**defined, "$ref": f"#/components/schemas/{name}"})
    for path, operation in document["paths"].items():
        if path.startswith("/v1/c") or "tokenize" in path:
            example = operation["post"]["requestBody"]["content"]["application/json"]
            assert validator.is_valid({**defined, **example["schema"]}, example["example"])
            reply = server.client.post(path, json=example["example"])
            assert reply.status_code == 200
            answer = operation["post"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert validator.is_valid({**defined, **answer}, reply.json())
