"""A text pipeline and a network that are small enough to see through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import Lineage, NetworkSpec
from fastserve.config import Section
from fastserve.models import NetworkShape, RaggedTensor
from fastserve.types import Encoded, Ragged, Recipe, TextPreferences

NETWORK = "bundle_fakes:TinyNetwork"
VOCABULARY = 64
LABELS = ("negative", "positive", "mixed")


class TinyPipeline:
    """A character is its code point modulo the vocabulary."""

    def save(self, folder: Path) -> dict[str, Any]:
        (folder / "vocabulary.txt").write_text("tiny\n", "utf-8")
        return {"kind": "tiny"}

    def encode(self, texts: Sequence[str]) -> Encoded:
        return {"tokens": Ragged.from_rows([[2 + ord(letter) % (VOCABULARY - 2) for letter in text] for text in texts])}


class TinyNetwork(nn.Module):
    """The mean of a text's embeddings through a linear layer."""

    encodings = ("tokens",)
    preferences = TextPreferences()

    class Options(Section):
        dimension: int = 8

    def __init__(self, options: Options, shape: NetworkShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary["tokens"], options.dimension)
        self.out = nn.Linear(options.dimension, shape.outputs)

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        tokens = inputs["tokens"]
        sums = torch.zeros(len(tokens), self.embedding.embedding_dim)
        sums.index_add_(0, tokens.rows, self.embedding(tokens.values.long()))
        return self.out(sums / tokens.lengths.clamp(min=1)[:, None])

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return Recipe(epochs=1, batch=8, learning_rate=0.1)


SHAPE = NetworkShape({"tokens": VOCABULARY}, len(LABELS))


def tiny_network(seed: int = 0) -> TinyNetwork:
    torch.manual_seed(seed)
    return TinyNetwork(TinyNetwork.Options(), SHAPE)


def save_tiny(folder: Path, *, seed: int = 0, **changes: Any) -> Bundle:
    """A whole, tiny bundle; `changes` go to save_bundle. Its pipeline is the tiny one."""
    parts: dict[str, Any] = {
        "task": "classification",
        "labels": LABELS,
        "network": NetworkSpec(
            name=NETWORK, options={"dimension": 8}, shape={"vocabulary": {"tokens": VOCABULARY}, "outputs": 3}
        ),
        "pipeline": TinyPipeline(),
        "weights": tiny_network(seed).state_dict(),
        "lineage": Lineage(config={"name": "tiny"}, seed=seed),
    }
    bundle = save_bundle(folder, **{**parts, **changes})
    bundle.__dict__["pipeline"] = TinyPipeline()  # where the cached property keeps its value
    return bundle
