"""Small bundles of every network that can be exported. Random weights are as good as learned ones for most of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import NetworkSpec, ParityRow
from fastserve.bundle.predictor import Predictor
from fastserve.config import TextConfig
from fastserve.models import NetworkShape, build, find
from fastserve.models.network import HasFiles
from fastserve.text.pipeline import TextPipeline

GOOD = ["good", "fine", "great", "很好", "喜欢", "满意"]
BAD = ["bad", "awful", "poor", "很差", "讨厌", "失望"]
PLAIN = ["the", "shop", "parcel", "was", "物流", "质量", "and", "today", "手机", "really"]

NETWORKS: dict[str, dict[str, Any]] = {
    "transformer": {"dim": 32, "layers": 1, "heads": 2, "feedforward": 64},
    "textcnn": {"dim": 16, "filters": 8},
    "lstm": {"dim": 8, "hidden": 6, "layers": 2},
    "export_samples:OwnNetwork": {},
}


class OwnNetwork(nn.Module):
    """A user's module of forward(ids, mask)."""

    def __init__(self, vocabulary_size: int, num_labels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, 16)
        self.output = nn.Linear(16, num_labels)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        counts = mask.sum(1, keepdim=True).clamp_min(1)
        return self.output((self.embedding(ids) * mask[..., None]).sum(1) / counts)


class Deciding(OwnNetwork):
    """What it does depends on the values of a tensor, which no graph can follow."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits = super().forward(ids, mask)
        return logits if float(logits.sum()) > 0 else -logits


def labelled(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Made-up texts, one word of which says the label."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label, told = [("negative", BAD), ("positive", GOOD)][generator.integers(2)]
        words = [*generator.choice(PLAIN, generator.integers(0, 12)), generator.choice(told)]
        rows.append((" ".join(generator.permutation(words)), label))
    return rows


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> str:
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), "utf-8")
    return str(path)


TEXTS = [text for text, _ in labelled(30)] + ["", "good", " ".join(PLAIN * 6)]


def save(folder: Path, name: str, options: dict[str, Any], *, steps: int = 0, **changes: Any) -> Bundle:
    """A bundle of the network, trained for `steps` steps; `changes` go to save_bundle."""
    kind = find(name)
    pipeline = TextPipeline.create(TextConfig(min_count=1), kind.encodings, preferences=kind.preferences)
    pipeline.fit(TEXTS)
    vocabulary = {encoding: pipeline.vocabulary_size(encoding) for encoding in kind.encodings}
    torch.manual_seed(0)
    network = build(name, options, NetworkShape(vocabulary, 2))
    train(network, pipeline, steps)
    parts: dict[str, Any] = {
        "task": "classification",
        "labels": ("negative", "positive"),
        "network": NetworkSpec(name=name, options=options, shape={"vocabulary": vocabulary, "outputs": 2}),
        "pipeline": pipeline,
        "weights": network.state_dict(),
        "extra_files": network.files() if isinstance(network, HasFiles) else {},
    }
    scores = Predictor(save_bundle(folder / "first", **parts), "torch").scores(TEXTS[-6:])
    rows = [ParityRow(text=text, scores=tuple(map(float, s))) for text, s in zip(TEXTS[-6:], scores, strict=True)]
    return save_bundle(folder / "model", **{**parts, "parity": rows, **changes})


def train(network: nn.Module, pipeline: TextPipeline, steps: int) -> None:
    from fastserve.models import RaggedTensor

    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(steps):
        rows = labelled(64, seed=1000 + step)
        encoded = pipeline.encode([text for text, _ in rows])
        targets = torch.tensor([int(label == "positive") for _, label in rows])
        logits = network({name: RaggedTensor.from_ragged(ragged) for name, ragged in encoded.items()})
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
