"""Rows of different lengths as tensors: what every network's forward() receives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastserve.types import Ragged


@dataclass(frozen=True, slots=True)
class RaggedTensor:
    """The tensor mirror of `fastserve.types.Ragged`: row i is `values[offsets[i]:offsets[i + 1]]`.

    values: int32 or int64 (N,); offsets: int64 (B + 1,), first 0, last N; weights: float32 (N,) or None.
    """

    values: Tensor
    offsets: Tensor
    weights: Tensor | None = None

    @classmethod
    def from_ragged(cls, ragged: Ragged) -> RaggedTensor:
        """The same memory as tensors (copied only where the array cannot be written, as in a memory map)."""
        weights = None if ragged.weights is None else _tensor(ragged.weights)
        return cls(_tensor(ragged.values), _tensor(ragged.offsets), weights)

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """int64 (B,)"""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def rows(self) -> Tensor:
        """The row of each value: int64 (N,)."""
        rows = torch.arange(len(self), device=self.values.device)
        return torch.repeat_interleave(rows, self.lengths, output_size=self.values.shape[0])

    def spread(self, parts: Tensor) -> Tensor:
        """What each row has, for each of its values: (B, D) to (N, D)."""
        if parts.device.type != "cpu":
            return parts[self.rows]
        # several times faster here than an index of rows
        return torch.from_numpy(np.repeat(parts.numpy(), self.lengths.numpy(), axis=0))

    def with_values(self, values: Tensor, weights: Tensor | None = None) -> RaggedTensor:
        """The same rows with other values (N,)."""
        return RaggedTensor(values, self.offsets, weights)

    def mask(self) -> Tensor:
        """Which places of the padded form hold a value: bool (B, T). T is at least 1, also where every row is empty."""
        lengths = self.lengths
        longest = max(int(lengths.max()), 1) if len(self) else 1
        return torch.arange(longest, device=lengths.device) < lengths[:, None]

    def padded(self, fill: int = 0) -> tuple[Tensor, Tensor]:
        """The rows side by side: int64 (B, T) with `fill` behind each row's end, and its mask, bool (B, T)."""
        mask = self.mask()
        ids = torch.full(mask.shape, fill, dtype=torch.int64, device=mask.device)
        ids[mask] = self.values.long()
        return ids, mask

    def cpu_ragged(self) -> Ragged:
        """The same as arrays: int32 values, int64 offsets, float32 weights."""
        weights = None if self.weights is None else self.weights.cpu().numpy()
        return Ragged(self.values.int().cpu().numpy(), self.offsets.cpu().numpy(), weights)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> RaggedTensor:
        return RaggedTensor(
            self.values.to(device, non_blocking=non_blocking),
            self.offsets.to(device, non_blocking=non_blocking),
            None if self.weights is None else self.weights.to(device, non_blocking=non_blocking),
        )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
