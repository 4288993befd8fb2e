"""The servers that `serve_classifier.py` measures FastServe against, each as its own documentation writes it.

    PYTHON serve_peers.py fastapi-torch|fastapi-onnx|litserve|bentoml BUNDLE PORT [MODEL.onnx]
    PYTHON serve_peers.py export BUNDLE MODEL.onnx

All use the model's own saved text pipeline and the same weights, one thread and one worker. A `textcnn` is run in the
form that everybody writes (embedding, convolution, maximum, linear); any other network through FastServe's torch and
ONNX runtimes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.predictor import Predictor

Array = npt.NDArray[Any]
BATCH, WAIT_SECONDS = 32, 0.002  # what the batching peers are given


def padded(bundle: Bundle, texts: Sequence[str]) -> Array:
    """Token ids of `texts`, int64 (N, T), 0 behind a text's end."""
    tokens = bundle.pipeline.encode(texts)["tokens"]
    lengths = tokens.lengths
    ids = np.zeros((len(texts), max(int(lengths.max()), 1)), np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = tokens.values
    return ids


def plain_textcnn(bundle: Bundle) -> Any:
    """The usual module, ids (N, T) to logits (N, C), with the weights of `bundle`."""
    import torch
    from torch import nn
    from torch.nn import functional

    weights = {name: torch.tensor(np.array(value)) for name, value in bundle.weights().items()}

    class PlainTextCnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding.from_pretrained(weights["embedding"])
            names = sorted(name for name in weights if name.startswith("convolutions.") and name.endswith(".weight"))
            self.convolutions = nn.ModuleList(self._convolution(name.removesuffix(".weight")) for name in names)
            self.output = nn.Linear(*reversed(weights["output.weight"].shape))
            self.output.load_state_dict({"weight": weights["output.weight"], "bias": weights["output.bias"]})

        @staticmethod
        def _convolution(name: str) -> nn.Conv1d:
            weight = weights[f"{name}.weight"]
            layer = nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2])
            layer.load_state_dict({"weight": weight, "bias": weights[f"{name}.bias"]})
            return layer

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            mask = (ids != 0).unsqueeze(1)  # (N, 1, T)
            words = self.embedding(ids).transpose(1, 2) * mask  # (N, D, T)
            strongest = []
            for layer in self.convolutions:
                found = functional.relu(layer(functional.pad(words, (0, layer.kernel_size[0] - 1)))) * mask
                strongest.append(found.amax(dim=2))
            return self.output(torch.cat(strongest, 1))

    return PlainTextCnn().eval()


class TorchEngine:
    """Scores by torch."""

    def __init__(self, bundle: Bundle) -> None:
        import torch

        torch.set_num_threads(1)
        self.torch, self.bundle = torch, bundle
        self.predictor = Predictor(bundle, "torch", threads=1)
        self.module = plain_textcnn(bundle) if bundle.manifest.network.name == "textcnn" else None

    def scores(self, texts: Sequence[str]) -> Array:
        if self.module is None:
            return self.predictor.scores(texts)
        with self.torch.inference_mode():
            logits = self.module(self.torch.from_numpy(padded(self.bundle, texts))).numpy()
        return self.predictor.task.probabilities(logits)


class OnnxEngine:
    """Scores by ONNX Runtime."""

    def __init__(self, bundle: Bundle, file: Path | None) -> None:
        self.bundle = bundle
        self.predictor = Predictor(bundle, "onnx", threads=1)
        self.session: Any = None
        if file is not None:
            import onnxruntime

            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = settings.inter_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])

    def scores(self, texts: Sequence[str]) -> Array:
        if self.session is None:
            return self.predictor.scores(texts)
        logits = self.session.run(None, {"ids": padded(self.bundle, texts)})[0]
        return self.predictor.task.probabilities(logits)


def predictions(engine: TorchEngine | OnnxEngine, texts: Sequence[str]) -> list[dict[str, Any]]:
    return [prediction.to_json() for prediction in engine.predictor.task.decode(engine.scores(texts))]


def export(bundle: Bundle, target: Path) -> None:
    """Write the plain TextCNN as ONNX; nothing is written for another network."""
    if bundle.manifest.network.name != "textcnn":
        return
    import torch

    dynamic = {"ids": {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")}}
    example = torch.ones(2, 8, dtype=torch.int64)
    program = torch.onnx.export(
        plain_textcnn(bundle), (example,), dynamo=True, input_names=["ids"], dynamic_shapes=dynamic, verbose=False
    )
    program.save(str(target))


def run_fastapi(engine: TorchEngine | OnnxEngine, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        instances: list[str]

    app = FastAPI()

    def predict(request: Request) -> dict[str, Any]:
        return {"predictions": predictions(engine, request.instances)}

    predict.__annotations__["request"] = Request  # a local class; FastAPI reads the annotation as an object
    app.post("/predict")(predict)
    uvicorn.run(app, port=port, log_level="error", access_log=False, loop="uvloop", http="httptools")


_LITSERVE = """
import pathlib, sys
import litserve
sys.path.insert(0, {here!r})
import serve_peers
from fastserve.bundle.bundle import Bundle

class Classifier(litserve.LitAPI):
    def setup(self, device):
        self.engine = serve_peers.OnnxEngine(Bundle.load({bundle!r}), {file})

    def decode_request(self, request):
        return request["instances"][0]

    def batch(self, inputs):
        return inputs

    def predict(self, texts):
        return serve_peers.predictions(self.engine, texts)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {{"predictions": [output]}}

if __name__ == "__main__":
    api = Classifier(max_batch_size={batch}, batch_timeout={wait})
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port={port}, host="127.0.0.1", log_level="error", generate_client_file=False)
"""


_BENTO = """
import os, pathlib, sys
import bentoml
sys.path.insert(0, {here!r})
import serve_peers
from fastserve.bundle.bundle import Bundle

@bentoml.service(workers=1, traffic={{"timeout": 60}}, logging={{"access": {{"enabled": False}}}})
class Classifier:
    def __init__(self):
        self.engine = serve_peers.OnnxEngine(Bundle.load({bundle!r}), {file})

    @bentoml.api(batchable=True, max_batch_size={batch}, max_latency_ms=1000)
    def predict(self, instances: list[str]) -> list[dict]:
        return serve_peers.predictions(self.engine, instances)
"""


def run_file(template: str, bundle: Bundle, file: Path | None, port: int, command: Sequence[str]) -> None:
    """LitServe and BentoML start processes that import their service from a file: write it, and run `command`."""
    here = Path(__file__).resolve().parent
    shown = f"pathlib.Path({str(file)!r})" if file else "None"
    values = {"here": str(here), "bundle": str(bundle.folder), "file": shown, "batch": BATCH, "wait": WAIT_SECONDS}
    Path("service.py").write_text(template.format(**values, port=port))
    process = subprocess.Popen([sys.executable, *command], env={**os.environ, "BENTOML_DO_NOT_TRACK": "true"})
    try:
        process.wait()
    finally:
        process.terminate()
        process.wait(10)


def main(kind: str, folder: str, last: str, onnx: str | None = None) -> None:
    bundle = Bundle.load(folder)
    file = Path(onnx) if onnx and Path(onnx).is_file() else None
    if kind == "export":
        export(bundle, Path(last))
    elif kind == "fastapi-torch":
        run_fastapi(TorchEngine(bundle), int(last))
    elif kind == "fastapi-onnx":
        run_fastapi(OnnxEngine(bundle, file), int(last))
    elif kind == "litserve":
        run_file(_LITSERVE, bundle, file, int(last), ["service.py"])
    elif kind == "bentoml":
        command = ["-m", "bentoml", "serve", "service:Classifier", "--port", last, "--host", "127.0.0.1"]
        run_file(_BENTO, bundle, file, int(last), command)
    else:
        sys.exit(f"no peer is called {kind!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
