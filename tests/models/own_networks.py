"""Networks as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastserve.config import Section
from fastserve.models import NetworkShape, RaggedTensor
from fastserve.types import Recipe, TextPreferences


class Plain(nn.Module):
    def __init__(self, vocabulary_size: int, num_labels: int, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary_size, width)
        self.output = nn.Linear(width, num_labels)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.output(self.embedding(ids))
        return logits


class Masked(nn.Module):
    def __init__(self, vocabulary_size: int, num_outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, num_outputs)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.embedding(ids) * mask[..., None]).sum(1)


class Fixed(nn.Module):
    """Always two logits, whatever was asked for."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros(len(ids), 2)


class Sequence(Fixed):
    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, 3)


class Tuple(nn.Module):
    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (torch.zeros(len(ids), 3),)


class Greedy(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        return torch.zeros(len(ids), 3)


class Broken(nn.Module):
    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        raise RuntimeError("no room")


class Following(nn.Module):
    """Follows the seam by itself."""

    class Options(Section):
        scale: float = 1.0

    encodings: ClassVar[tuple[str, ...]] = ("ngrams",)
    preferences: ClassVar[TextPreferences] = TextPreferences()

    def __init__(self, options: Options, shape: NetworkShape) -> None:
        super().__init__()
        self.scale, self.outputs = options.scale, shape.outputs

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return Recipe(epochs=1, batch=8, learning_rate=0.1)

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        return inputs["ngrams"].lengths[:, None].expand(-1, self.outputs) * self.scale


NOT_A_CLASS = 3
