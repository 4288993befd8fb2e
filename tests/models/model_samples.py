"""Small networks and random texts as numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import Generator
from torch import nn

from fastserve.models import NetworkShape, RaggedTensor, build
from fastserve.models.network import HasStatistics
from fastserve.types import Encoded, Ragged

VOCABULARY = {"tokens": 60, "ngrams": 90}
OUTPUTS = 3
SHAPE = NetworkShape(VOCABULARY, OUTPUTS)


def random_texts(generator: Generator, lengths: list[int]) -> Encoded:
    """Texts of the given numbers of tokens (ids from 1) with twice as many n-grams."""
    tokens = Ragged.from_rows([generator.integers(1, VOCABULARY["tokens"], length) for length in lengths])
    rows = [generator.choice(VOCABULARY["ngrams"], min(2 * n, VOCABULARY["ngrams"]), replace=False) for n in lengths]
    ngrams = Ragged.from_rows([np.sort(row) for row in rows])
    counts = generator.integers(1, 4, len(ngrams.values)).astype(np.float32)
    return {"tokens": tokens, "ngrams": Ragged(ngrams.values, ngrams.offsets, counts)}


def build_fitted(name: str, options: dict[str, object], seed: int = 0, shape: NetworkShape = SHAPE) -> nn.Module:
    """A network that has seen its training set; tables that start at zero are filled, lest they hide differences."""
    torch.manual_seed(seed)
    network = build(name, options, shape)
    if isinstance(network, HasStatistics):
        texts = random_texts(np.random.default_rng(9), [45] * 8)
        network.fit_statistics([(texts, np.zeros(8)), (texts, np.zeros(8))])
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return network


def tensors(encoded: Encoded) -> dict[str, RaggedTensor]:
    return {name: RaggedTensor.from_ragged(ragged) for name, ragged in encoded.items()}


def logits(network: torch.nn.Module, encoded: Encoded) -> torch.Tensor:
    """What the network says without dropout and gradients."""
    network.eval()
    with torch.no_grad():
        found: torch.Tensor = network(tensors(encoded))
    return found
