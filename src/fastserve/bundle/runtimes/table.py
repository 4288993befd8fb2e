"""The runtime of the classic networks: table look-ups in numpy. No torch is imported.

A convolution or a linear layer over embeddings is linear, so its product with a word is the same in every text. Such
products are looked up, not computed: a text costs a gather, a few additions and a maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from fastserve.bundle.bundle import Bundle
from fastserve.errors import BundleError, choices
from fastserve.types import Encoded, FloatArray, LongArray, Ragged

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]

VALUES_AT_ONCE = 256 * 900
"""Most float32 values (about 1 MB) that a step writes: what a core's cache holds."""


class TableNetwork(Protocol):
    """One network's forward pass over numpy arrays."""

    def logits(self, encoded: Encoded) -> FloatArray:
        """float32 (N, outputs)"""
        ...


class NgramRows:
    """`models.ngram_table.NgramTable`: values of a text's kept n-grams times their rows, summed."""

    def __init__(self, weights: Weights) -> None:
        self.weight, self.idf = _floats(weights, "weight", "idf")
        kept = weights["kept"]
        self.beyond = int(kept[-1]) + 1 if len(kept) else 0  # no id from here on is kept
        self.row_of = np.full(self.beyond + 1, -1, np.int32)
        self.row_of[kept] = np.arange(len(kept), dtype=np.int32)

    def sums(self, ngrams: Ragged) -> FloatArray:
        """(B, width)"""
        rows = self.row_of[np.minimum(ngrams.values, self.beyond)]
        is_kept = rows >= 0
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(is_kept, out=ends[1:])
        chosen = Ragged(rows[is_kept], ends[ngrams.offsets])
        values = self.idf[chosen.values]
        if ngrams.weights is not None:
            values = values * (1 + np.log(ngrams.weights[is_kept]))
        kind = 2 * np.repeat(np.arange(len(ngrams)), chosen.lengths) + (ngrams.values[is_kept] & 1)
        squares = np.bincount(kind, values * values, 2 * len(ngrams)).astype(np.float32)
        scale: FloatArray = 1 / np.sqrt(2 * np.maximum(squares, 1e-12))
        return weighted_sum(self.weight, chosen, values * scale[kind])


class BagTable:
    """`models.bag.Bag`: n-gram rows to labels, or through a hidden layer."""

    def __init__(self, weights: Weights) -> None:
        self.ngrams = NgramRows(_part(weights, "table"))
        self.bias, self.scale = _floats(weights, "bias", "scale")
        self.output = _layers(weights, ["output"]) if "output.weight" in weights else []

    def logits(self, encoded: Encoded) -> FloatArray:
        summed = self.ngrams.sums(encoded["ngrams"]) + self.bias
        return _through(self.output, np.maximum(summed, 0)) if self.output else summed * self.scale


class LinearTable:
    """`models.linear.Linear`: the mean of two linear models is one, over the same n-gram rows."""

    def __init__(self, weights: Weights) -> None:
        hinge = _part(weights, "table")
        share, scale = (float(value) for value in _floats(weights, "entropy_share", "scale"))
        hinge_bias, entropy, entropy_bias = _floats(weights, "bias", "entropy_weight", "entropy_bias")
        mean = share * entropy + (1 - share) * scale * hinge["weight"]
        self.ngrams = NgramRows({**hinge, "weight": mean})
        self.bias = share * entropy_bias + (1 - share) * scale * hinge_bias

    def logits(self, encoded: Encoded) -> FloatArray:
        summed: FloatArray = self.ngrams.sums(encoded["ngrams"]) + self.bias
        return summed


class WideDeepTable:
    """`models.wide_deep.WideDeep`: n-gram rows beside convolutions."""

    def __init__(self, weights: Weights) -> None:
        self.ngrams = NgramRows(_part(weights, "table"))
        self.bias, self.scale, self.deep_share = _floats(weights, "bias", "scale", "deep_share")
        self.members = [TextCnnTable(_part(weights, name)) for name in _numbered(weights, "members", "embedding")]

    def logits(self, encoded: Encoded) -> FloatArray:
        wide = (self.ngrams.sums(encoded["ngrams"]) + self.bias) * self.scale
        deep = [member.logits(encoded) for member in self.members]
        return both_sides(wide, deep[0].shape[1]) + np.mean(deep, axis=0, dtype=np.float32) * self.deep_share


class MlpTable:
    """`models.mlp.Mlp`: the mean of embeddings through hidden layers."""

    def __init__(self, weights: Weights) -> None:
        (self.embedding,) = _floats(weights, "embedding")
        self.layers = _layers(weights, list(_numbered(weights, "layers")))

    def logits(self, encoded: Encoded) -> FloatArray:
        tokens = encoded["tokens"]
        share = np.repeat(1 / np.maximum(tokens.lengths, 1), tokens.lengths).astype(np.float32)
        return _through(self.layers, weighted_sum(self.embedding, tokens, share))


class TextCnnTable:
    """`models.textcnn.TextCnn`: a word's products with all filter offsets are one row of a table.

    A row is filled when its word is first seen: a server starts at once and holds only the words that are asked for
    (the pages of the others are never touched). Filling a row twice, from two threads, writes the same values.
    """

    def __init__(self, weights: Weights) -> None:
        (self.embedding,) = _floats(weights, "embedding")
        names = list(_numbered(weights, "convolutions"))
        order = sorted(range(len(names)), key=lambda i: -weights[f"{names[i]}.weight"].shape[2])  # the widest first
        convolutions = [_floats(weights, f"{names[i]}.weight", f"{names[i]}.bias") for i in order]
        self.sizes = _sizes([kernel.shape for kernel, _ in convolutions])
        self.bias = np.concatenate([bias for _, bias in convolutions])
        self.filters = np.concatenate(
            [kernel[:, :, o] for o in range(len(self.sizes)) for kernel, _ in convolutions if kernel.shape[2] > o]
        ).T.copy()  # (D, sum of sizes), by offset, then convolution
        self.output = [_reordered(_layers(weights, ["output"])[0], [weights[f"{n}.bias"].size for n in names], order)]
        self.table = np.zeros((len(self.embedding) + 1, self.filters.shape[1]), np.float32)  # the last: behind the end
        self.is_filled = np.zeros(len(self.table), bool)
        self.is_filled[-1] = True

    def logits(self, encoded: Encoded) -> FloatArray:
        tokens = encoded["tokens"]
        self._fill(tokens.values)
        if len(tokens) == 1:
            return _through(self.output, np.maximum(self._pool_one(tokens.values) + self.bias, 0))
        pooled = np.empty((len(tokens), self.sizes[0]), np.float32)
        for rows in self._blocks(tokens.offsets):
            self._pool(tokens, rows, pooled)
        return _through(self.output, np.maximum(pooled + self.bias, 0))

    def _fill(self, ids: Array) -> None:
        missing = ids[~self.is_filled[ids]]
        if len(missing):
            missing = np.unique(missing)
            self.table[missing] = self.embedding[missing] @ self.filters
            self.is_filled[missing] = True

    def _blocks(self, offsets: LongArray) -> Iterator[range]:
        """Runs of texts whose products fit the cache; at least one text each."""
        most = max(VALUES_AT_ONCE // self.table.shape[1], 1)
        start, texts = 0, len(offsets) - 1
        while start < texts:
            stop = int(np.searchsorted(offsets, offsets[start] + most, side="right")) - 1
            stop = min(max(stop, start + 1), texts)
            yield range(start, stop)
            start = stop

    def _pool_one(self, ids: Array) -> FloatArray:
        """What `_pool` finds for a single text, without its bookkeeping: (1, filters)."""
        strongest: FloatArray = self._answers(ids).max(axis=0, keepdims=True, initial=-np.inf)
        return strongest

    def _pool(self, tokens: Ragged, rows: range, pooled: FloatArray) -> None:
        """The strongest answer of each filter (before bias and ReLU) into `pooled[rows]`."""
        gap = len(self.sizes) - 1  # zero words between texts, so that no filter sees two texts
        starts = tokens.offsets[rows.start : rows.stop + 1] - tokens.offsets[rows.start]
        places = starts[:-1] + gap * np.arange(len(rows))
        ids = np.full(int(starts[-1]) + gap * len(rows), len(self.table) - 1, np.int64)
        values = tokens.values[tokens.offsets[rows.start] : tokens.offsets[rows.stop]]
        ids[np.arange(len(values)) + np.repeat(gap * np.arange(len(rows)), np.diff(starts))] = values
        answers = self._answers(ids)
        for row, place, length in zip(rows, places.tolist(), np.diff(starts).tolist(), strict=True):
            if length:
                np.max(answers[place : place + length], axis=0, out=pooled[row])
            else:
                pooled[row] = -np.inf

    def _answers(self, ids: Array) -> FloatArray:
        """What each filter answers when it starts at each of the N words: (N, filters)."""
        products = self.table.take(ids, axis=0, mode="clip")
        answers, first = products[:, : self.sizes[0]], self.sizes[0]
        for offset, size in enumerate(self.sizes[1:], start=1):
            answers[:-offset, :size] += products[offset:, first : first + size]
            first += size
        return answers


NETWORKS: Mapping[str, Callable[[Weights], TableNetwork]] = {
    "linear": LinearTable,
    "wide-deep": WideDeepTable,
    "bag": BagTable,
    "mlp": MlpTable,
    "textcnn": TextCnnTable,
}


class TableRuntime:
    """A classic network without torch."""

    name: ClassVar[str] = "table"

    def __init__(self, weights: Weights, network_name: str, options: Mapping[str, Any], outputs: int) -> None:
        if not self.supports(network_name, options):
            raise BundleError(f"runtime 'table' cannot run '{network_name}': {choices(network_name, NETWORKS)}")
        try:
            self.network = NETWORKS[network_name](weights)
        except KeyError as error:
            raise BundleError(f"the weights of network '{network_name}' lack {error}") from None
        self.outputs = outputs

    @classmethod
    def load(cls, bundle: Bundle, threads: int | None = None) -> Self:
        """threads is not needed: a call runs on the caller's core."""
        spec = bundle.manifest.network
        return cls(bundle.weights(), spec.name, spec.options, int(spec.shape["outputs"]))

    @staticmethod
    def supports(network_name: str, options: Mapping[str, Any]) -> bool:
        """Whether a network of this name and these options can run here."""
        return network_name in NETWORKS

    def logits(self, encoded: Encoded) -> FloatArray:
        """float32 (N, outputs)"""
        if not len(next(iter(encoded.values()))):
            return np.zeros((0, self.outputs), np.float32)
        return both_sides(self.network.logits(encoded), self.outputs)


def both_sides(scores: FloatArray, outputs: int) -> FloatArray:
    """`models.ngram_table.both_sides`"""
    return scores if scores.shape[1] == outputs else np.concatenate([-scores, scores], axis=1)


def weighted_sum(table: FloatArray, ids: Ragged, values: FloatArray) -> FloatArray:
    """out[i] = sum of value * table[id] over row i of `ids`: (B, D)."""
    if len(ids) == 1:
        return values[None] @ table[ids.values]
    summed = np.empty((len(ids), table.shape[1]), np.float32)
    most = max(VALUES_AT_ONCE // table.shape[1], 1)
    start = 0
    while start < len(ids):
        stop = int(np.searchsorted(ids.offsets, ids.offsets[start] + most, side="right")) - 1
        stop = min(max(stop, start + 1), len(ids))
        part = slice(ids.offsets[start], ids.offsets[stop])
        rows = table[ids.values[part]] * values[part, None]
        summed[start:stop] = segment_sum(rows, ids.offsets[start : stop + 1] - ids.offsets[start])
        start = stop
    return summed


def segment_sum(rows: FloatArray, offsets: LongArray) -> FloatArray:
    """Sums of `rows[offsets[i]:offsets[i + 1]]`: (B, D), zero for an empty segment."""
    summed = np.zeros((len(offsets) - 1, rows.shape[1]), np.float32)
    is_some = offsets[1:] > offsets[:-1]
    if is_some.any():
        summed[is_some] = np.add.reduceat(rows, offsets[:-1][is_some], axis=0)
    return summed


def _floats(weights: Weights, *names: str) -> list[FloatArray]:
    return [np.asarray(weights[name], np.float32) for name in names]


Layer = tuple[FloatArray, FloatArray]


def _layers(weights: Weights, names: list[str]) -> list[Layer]:
    """Linear layers as (inputs, outputs) matrices and biases."""
    return [(np.ascontiguousarray(w.T), b) for w, b in (_floats(weights, f"{n}.weight", f"{n}.bias") for n in names)]


def _through(layers: list[Layer], hidden: FloatArray) -> FloatArray:
    """Linear layers with ReLU between them."""
    for number, (matrix, bias) in enumerate(layers):
        hidden = (np.maximum(hidden, 0) if number else hidden) @ matrix + bias
    return hidden


def _numbered(weights: Weights, part: str, member: str = "weight") -> Iterator[str]:
    """`part.0`, `part.1`, ... as far as there are weights."""
    number = 0
    while f"{part}.{number}.{member}" in weights:
        yield f"{part}.{number}"
        number += 1


def _part(weights: Weights, name: str) -> dict[str, Array]:
    """The weights below `name`, without it."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def _sizes(shapes: list[tuple[int, ...]]) -> list[int]:
    """For each offset how many filters reach it; shapes are (filters, D, width), the widest first."""
    return [sum(shape[0] for shape in shapes if shape[2] > offset) for offset in range(shapes[0][2])]


def _reordered(layer: Layer, sizes: list[int], order: list[int]) -> Layer:
    """The layer for inputs whose groups of the given sizes come in another order."""
    matrix, bias = layer
    parts = np.split(matrix, np.cumsum(sizes)[:-1])
    return np.concatenate([parts[i] for i in order]), bias
