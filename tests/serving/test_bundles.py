"""Real bundles from the real registry, by the door that the command line uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from rawhttp import Load
from servers import Server

from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import NetworkSpec, ParityRow
from fastserve.bundle.predictor import Predictor
from fastserve.config import TextConfig
from fastserve.models import NetworkShape, build, find
from fastserve.registry import Registry
from fastserve.serving.serve import BUNDLES
from fastserve.text.pipeline import TextPipeline

TEXTS = ["物流很快，质量不错", "很差，再也不买了", "a good movie", "", "bad", "so so 一般般", "quite long " * 30, "好"]


def save(folder: Path, network: str, seed: int, *, spoil: float = 0.0) -> Bundle:
    """A model with random weights, which are as good here as learned ones. spoil: how far its parity rows are off."""
    kind = find(network)
    pipeline = TextPipeline.create(TextConfig(min_count=1), kind.encodings, preferences=kind.preferences)
    pipeline.fit(TEXTS)
    vocabulary = {encoding: pipeline.vocabulary_size(encoding) for encoding in kind.encodings}
    torch.manual_seed(seed)
    module = build(network, {}, NetworkShape(vocabulary, 2)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    spec = NetworkSpec(name=network, shape={"vocabulary": vocabulary, "outputs": 2})
    words = {"task": "classification", "labels": ("bad", "good"), "network": spec, "pipeline": pipeline}
    first = save_bundle(folder / "first", weights=module.state_dict(), **words)  # type: ignore[arg-type]
    scores = Predictor(first, "torch").scores(TEXTS)
    scores[0] += np.float32([spoil, -spoil])
    rows = [ParityRow(text=t, scores=tuple(map(float, row))) for t, row in zip(TEXTS, scores, strict=True)]
    return save_bundle(folder / "model", weights=module.state_dict(), parity=rows, **words)  # type: ignore[arg-type]


def test_a_classic_network_is_served_swapped_and_guarded(tmp_path: Path, launch: Callable[..., Server]) -> None:
    registry = Registry()
    bundles = [save(tmp_path / str(seed), "textcnn", seed) for seed in (1, 2)]
    spoiled = save(tmp_path / "spoiled", "textcnn", 3, spoil=0.01)
    registry.publish(bundles[0].folder, "sentiment")
    registry.promote("sentiment@1")
    server = launch("sentiment@production", source=BUNDLES, watch_seconds=0.1).ready()

    def found() -> list[float]:
        predictions = server.predict(*TEXTS).json()["predictions"]
        return [prediction["scores"]["good"] for prediction in predictions]

    np.testing.assert_allclose(found(), Predictor(bundles[0], "torch").scores(TEXTS)[:, 1], atol=1e-5)
    maps = Path(f"/proc/{server.workers()[0]}/maps").read_text()
    assert "libtorch" not in maps
    assert "sklearn" not in maps
    with Load(server.port, clients=3) as load:
        registry.publish(bundles[1].folder, "sentiment")
        registry.promote("sentiment@2")
        server.wait_for("version swapped")
        registry.publish(spoiled.folder, "sentiment")
        registry.promote("sentiment@3")
        assert "parity row 1: 'bad' has" in server.wait_for("version refused")["reason"]
    assert set(load.outcomes) == {"200"}, load
    np.testing.assert_allclose(found(), Predictor(bundles[1], "torch").scores(TEXTS)[:, 1], atol=1e-5)
    assert server.stop() == 0


def test_a_heavy_network_runs_beside_the_event_loop(tmp_path: Path, launch: Callable[..., Server]) -> None:
    bundle = save(tmp_path, "lstm", 1)
    server = launch(f"m={bundle.folder}", source=BUNDLES, runtime="torch").ready()
    reply = server.predict(*TEXTS, model="m").json()["predictions"]
    expected = Predictor(bundle, "torch").scores(TEXTS)[:, 1]
    np.testing.assert_allclose([prediction["scores"]["good"] for prediction in reply], expected, atol=1e-5)
    assert httpx.get(f"{server.url}/v2/models/m").json()["platform"] == "fastserve_torch"
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("damage", "words", "code"),
    [("flip", "damaged", 1), ("name", "no model is called", 2)],
)
def test_what_cannot_be_served_says_why(
    tmp_path: Path, launch: Callable[..., Server], damage: str, words: str, code: int
) -> None:
    folder = save(tmp_path, "bag", 1).folder
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    weights.write_bytes(content)
    server = launch("nobody" if damage == "name" else f"m={folder}", source=BUNDLES)
    assert words in server.wait_for("error")["message"]
    assert server.process.wait(10) == code
