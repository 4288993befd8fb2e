"""The public clients, unchanged: tritonclient here, kserve in a Python of its own where this one lacks it.

kserve pins pandas and protobuf below what other parts bring, so it may live in another environment, whose Python is
named by FASTSERVE_KSERVE_PYTHON (made by: python -m venv DIR; DIR/bin/pip install kserve).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastserve.serving.fake import FakeModel, FakeSettings

Serve = Callable[..., Any]
TEXTS = ["质量不错", "broken", "", "🙂"]
SECRET = "correct-horse-battery"


def expected() -> tuple[list[str], np.ndarray]:
    model = FakeModel(FakeSettings())
    scores = model.scores(TEXTS)
    return [str(prediction.label) for prediction in model.decode(scores)], scores


@pytest.fixture
def triton(serve: Serve) -> Any:
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http] (extra 'test')")
    client = http.InferenceServerClient(serve().url.removeprefix("http://"))
    yield client
    client.close()


def triton_input(binary: bool) -> Any:
    from tritonclient.http import InferInput

    tensor = InferInput("text", [len(TEXTS)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in TEXTS], np.object_), binary_data=binary)
    return tensor


def test_triton_looks_around(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("sentiment")
    assert triton.is_model_ready("sentiment", "1")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["name"] == "fastserve"
    metadata = triton.get_model_metadata("sentiment", "1")
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["label", "score", "scores"]


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_triton_infers(triton: Any, binary_input: bool, binary_output: bool | None) -> None:
    from tritonclient.http import InferRequestedOutput

    outputs = None
    if binary_output is not None:
        outputs = [InferRequestedOutput(name, binary_data=binary_output) for name in ("scores", "label")]
    result = triton.infer("sentiment", [triton_input(binary_input)], outputs=outputs, request_id="r-1")
    labels, scores = expected()
    found = [item.decode() if isinstance(item, bytes) else item for item in result.as_numpy("label")]
    assert found == labels
    np.testing.assert_allclose(result.as_numpy("scores"), scores, rtol=1e-6)
    assert result.get_response()["id"] == "r-1"


def test_triton_hears_what_is_wrong(triton: Any) -> None:
    from tritonclient.http import InferRequestedOutput
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="no output is called 'logits'"):
        triton.infer("sentiment", [triton_input(True)], outputs=[InferRequestedOutput("logits")])
    with pytest.raises(InferenceServerException, match="no model is called 'other'"):
        triton.infer("other", [triton_input(True)])
    with pytest.raises(InferenceServerException, match="'sequence_id'"):
        triton.infer("sentiment", [triton_input(True)], sequence_id=5)


def test_triton_with_a_key(serve: Serve, tmp_path: Path) -> None:
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http] (extra 'test')")
    (tmp_path / "keys").write_text(SECRET)
    with http.InferenceServerClient(serve(api_key_file=str(tmp_path / "keys")).url.removeprefix("http://")) as client:
        headers = {"Authorization": f"Bearer {SECRET}"}
        assert client.is_server_ready()
        assert list(client.infer("sentiment", [triton_input(True)], headers=headers).as_numpy("label")) != []
        assert not client.is_model_ready("sentiment")


_KSERVE = """
import asyncio, json, sys
from kserve import InferInput, InferRequest, InferenceRESTClient, RESTConfig
url, texts = sys.argv[1], json.loads(sys.argv[2])

async def main():
    found = {}
    async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=20)) as v1:
        found["v1"] = [await v1.is_server_live(url), await v1.is_model_ready(url, "sentiment")]
        found["predictions"] = (await v1.infer(url, {"instances": texts}, model_name="sentiment"))["predictions"]
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=20)) as v2:
        found["v2"] = [await v2.is_server_live(url), await v2.is_server_ready(url),
                       await v2.is_model_ready(url, "sentiment"), await v2.is_model_ready(url, "other")]
        for binary in (False, True):
            tensor = InferInput("text", [len(texts)], "BYTES", data=None if binary else texts)
            if binary:
                import numpy
                tensor.set_data_from_numpy(numpy.array(texts, dtype=object), binary_data=True)
            request = InferRequest("sentiment", [tensor], request_id="r-2")
            reply = await v2.infer(url, request, model_name="sentiment")
            labels = [o for o in reply.outputs if o.name == "label"][0].as_numpy()
            found[f"labels {binary}"] = [label.decode() if isinstance(label, bytes) else label for label in labels]
            found[f"scores {binary}"] = [o for o in reply.outputs if o.name == "scores"][0].as_numpy().tolist()
            found["id"] = reply.id
    print(json.dumps(found))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def kserve_python() -> str:
    if importlib.util.find_spec("kserve") is not None:
        return sys.executable
    named = os.environ.get("FASTSERVE_KSERVE_PYTHON")
    if not named:
        pytest.skip("needs the kserve client: set FASTSERVE_KSERVE_PYTHON to a Python that has it")
    return named


def test_kserve_client(serve: Serve, kserve_python: str) -> None:
    command = [kserve_python, "-W", "ignore", "-c", _KSERVE, serve().url, json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    labels, scores = expected()
    assert found["v1"] == [True, True]
    assert found["v2"] == [True, True, True, False]
    assert [prediction["label"] for prediction in found["predictions"]] == labels
    assert found["id"] == "r-2"
    for form in ("False", "True"):
        assert found[f"labels {form}"] == labels
        np.testing.assert_allclose(found[f"scores {form}"], scores, rtol=1e-6)
