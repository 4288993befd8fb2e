"""The nouns that everything passes around. numpy only; no torch, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
LongArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the user's data. `row` is its line in the file, counted from 1, a header included."""

    text: str
    labels: tuple[str, ...] = ()
    row: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths, end to end in one array: row i is `values[offsets[i]:offsets[i + 1]]`.

    values: int32 (N,); offsets: int64 (rows + 1,), first 0, last N, never falling; weights: float32 (N,) or None.
    """

    values: IntArray
    offsets: LongArray
    weights: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> LongArray:
        return np.diff(self.offsets)

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int] | IntArray]) -> Ragged:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        parts = [np.asarray(row, np.int32) for row in rows]
        return cls(np.concatenate(parts) if parts else np.zeros(0, np.int32), offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """One Ragged with the rows of all `parts` in order (at least one part)."""
        lengths = np.concatenate([part.lengths for part in parts])
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        weights = [part.weights for part in parts if part.weights is not None]
        return cls(
            np.concatenate([part.values for part in parts]),
            offsets,
            np.concatenate(weights) if len(weights) == len(parts) else None,
        )

    def between(self, start: int, stop: int) -> Ragged:
        """Rows start to stop (not included), whose values are not copied."""
        first, last = self.offsets[start], self.offsets[stop]
        weights = None if self.weights is None else self.weights[first:last]
        return Ragged(self.values[first:last], self.offsets[start : stop + 1] - first, weights)

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Ragged:
        """The given rows, in the given order, copied out."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        index = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[index], offsets, None if self.weights is None else self.weights[index])


Encoded = dict[str, Ragged]
"""Texts as numbers: encoding name ("tokens", "ngrams") to its rows; all encodings have the same number of rows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a data set, ready to become tensors.

    rows: int64 (B,), their positions in the data set; targets: int64 (B,) class indices, or float32 (B, C) of 0 and 1
    for several labels a row.
    """

    rows: LongArray
    inputs: Encoded
    targets: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer for one text.

    label is a list where a row may have several labels. score is the probability of `label` (for a list: of the most
    probable one). scores has the probability of every label.
    """

    label: str | list[str]
    score: float
    scores: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, "score": self.score, "scores": self.scores}


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure with its 95 % interval (None where none was computed)."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found. `details` holds what the task adds (confusion matrix, curves, mistakes, slices)."""

    task: str
    rows: int
    metrics: dict[str, Metric]
    details: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.metrics[name].value

    def to_json(self) -> dict[str, Any]:
        metrics = {name: {"value": m.value, "low": m.low, "high": m.high} for name, m in self.metrics.items()}
        return {"task": self.task, "rows": self.rows, "metrics": metrics, "details": self.details}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        metrics = {name: Metric(**metric) for name, metric in value["metrics"].items()}
        return cls(value["task"], value["rows"], metrics, dict(value["details"]))


@dataclass(frozen=True, slots=True)
class TextPreferences:
    """What `auto` means in the text section for one network."""

    segment: str = "jieba"
    """Segmentation for Chinese and mixed data; texts without Han characters use "whitespace" unless "subword"."""
    vocabulary_size: int = 100_000
    tokenizer_file: str | None = None
    """A tokenizer.json that the network's pretrained weights demand; implies `segment: subword`."""
    max_length: int = 512
    han_characters: tuple[int, int] = (1, 3)
    """How many characters an n-gram with a Han character has, at least and at most."""


@dataclass(frozen=True, slots=True)
class Message:
    """What one side of a conversation says. role: "system", "user", "assistant", or others of a template."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PlainText:
    """A document to learn from, all of it; or a part of a long one, which may not begin or not end with it."""

    text: str
    begins: bool = True
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt, and what is to be written after it."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order; what the assistant says is learned."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers after the same messages (or the same prompt), of which the first is the better one."""

    prompt: tuple[Message, ...] | str
    chosen: str
    rejected: str


Document = PlainText | Completion | Conversation | Preference
"""One item of a language model's data."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network likes to be trained: what `auto` means for it. Every value can be overridden by the user."""

    epochs: int
    batch: int
    learning_rate: float
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    warmup: float = 0.05
    schedule: str = "linear"
    label_smoothing: float = 0.0
    gradient_clip: float = 1.0
    keep: str = "best"
    """Which weights are kept: of the best evaluation, or of the last step (where the schedule ends at rest)."""
    early_stopping: int = 2
    """Evaluations without improvement after which a run ends; 0 goes on to the end."""
    bf16: bool = False
    """Whether the network gains by computing in bfloat16 where the hardware is fast at it."""
    average: float = 0.0
    """Decay of the exponential moving average of the weights that is evaluated and saved; 0 keeps none."""
    matrix_rate: float = 0.02
    """With optimizer "muon": the learning rate of hidden matrices."""
    decay: float = 0.2
    """With schedule "wsd": the share of the steps in which the rate falls."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Of adamw: how slowly its moments follow the gradient."""
    eps: float = 1e-8
    """Of adamw."""
    z_loss: float = 0.0
    spike: float = 0.0
    """A loss so many times the usual has diverged; 0 where single losses say little."""

    def for_rows(self, rows: int) -> Recipe:
        """Where there are few rows: smaller batches, and more epochs until a run stops early, so that there are steps
        enough to learn anything."""
        batch, epochs = next((batch, epochs) for most, batch, epochs in _FEW if rows < most)
        return replace(self, batch=min(self.batch, batch), epochs=max(self.epochs, epochs))


_FEW = ((2_500, 16, 10), (8_000, 32, 10), (20_000, 64, 6), (math.inf, 1 << 30, 1))
"""Below so many rows: the largest batch, and the fewest epochs."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters of a network, by their names in `named_parameters()`, that are trained in a way of their own.

    rate: factor of the run's learning rate. optimizer: "adamw", "adagrad", "sgd" (without momentum), or for matrices
    "muon".
    """

    parameters: tuple[str, ...]
    rate: float = 1.0
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    accumulate: int = 1
    """Steps whose gradients are averaged for one update, then of every row, also where few were touched."""
