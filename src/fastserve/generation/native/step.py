"""Whole steps of a decoder in one call of `decode.c`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastserve.generation.native.panels import BLOCK, LinearStruct, Panels, decoding
from fastserve.generation.step_attention import StepAttention

LANES = 16
Pointer = ctypes.c_void_p


class LayerStruct(ctypes.Structure):
    """`Layer` of decode.c."""

    _fields_ = (
        *((name, LinearStruct) for name in ("qkv", "output", "gate_up", "down")),
        *((name, Pointer) for name in ("before", "between", "query_norm", "key_norm")),
        ("scale", ctypes.c_float),
        ("window", ctypes.c_int32),
    )


class ModelStruct(ctypes.Structure):
    """`Model` of decode.c."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("layers", "dim", "heads", "shared", "head_size", "feed", "half_table", "half_cache")
        ),
        *((name, ctypes.c_float) for name in ("epsilon", "head_epsilon", "amplitude")),
        *((name, Pointer) for name in ("table", "norm", "frequencies", "blocks")),
    )


class StepStruct(ctypes.Structure):
    """`Step` of decode.c."""

    _fields_ = (
        ("rows", ctypes.c_int32),
        ("longest", ctypes.c_int32),
        *((name, Pointer) for name in ("ids", "positions", "keys", "values")),
        ("row_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        *((name, Pointer) for name in ("hidden", "tokens", "wide", "angles", "scores", "input_scales", "input")),
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Norms are float32 (size,); those of queries and keys are there or not."""

    before: Tensor
    qkv: Panels
    norms: tuple[Tensor, Tensor] | None
    output: Panels
    between: Tensor
    gated: Panels
    down: Panels
    scale: float
    window: int | None


@dataclass(frozen=True, slots=True)
class Shape:
    """heads: of queries; shared: of keys and values."""

    dim: int
    heads: int
    shared: int
    head_size: int
    epsilon: float
    head_epsilon: float
    amplitude: float
    cache: torch.dtype


class NativeStep:
    """table: the embedding; norm: the last one, float32; frequencies: (head_size / 2,) float32."""

    def __init__(self, shape: Shape, blocks: list[Block], table: Tensor, norm: Tensor, frequencies: Tensor) -> None:
        self.shape = shape
        self._library: Any = decoding()
        self._kept_alive: list[Any] = [blocks, table.contiguous(), norm.contiguous(), frequencies.contiguous()]
        layers = (LayerStruct * len(blocks))(*map(self._layer, blocks))
        self._kept_alive.append(layers)
        first = blocks[0]
        self._wide = max(first.qkv.kept, shape.dim, first.gated.kept)
        self._words = max(one.words for one in (first.qkv, first.output, first.gated, first.down))
        self._model = ModelStruct(
            *(len(blocks), shape.dim, shape.heads, shape.shared, shape.head_size, first.gated.kept),
            *(int(kind is torch.bfloat16) for kind in (table.dtype, shape.cache)),
            *(shape.epsilon, shape.head_epsilon, shape.amplitude),
            *(tensor.data_ptr() for tensor in self._kept_alive[1:4]),
            ctypes.addressof(layers),
        )

    def _layer(self, block: Block) -> LayerStruct:
        norms = [block.before, block.between, *(block.norms or (None, None))]
        kept = [None if norm is None else norm.contiguous() for norm in norms]
        self._kept_alive.append(kept)
        linears = [linear.struct for linear in (block.qkv, block.output, block.gated, block.down)]
        pointers = [None if norm is None else norm.data_ptr() for norm in kept]
        return LayerStruct(*linears, *pointers, block.scale, block.window or 0)

    def __call__(self, ids: Tensor, attention: StepAttention) -> Tensor:
        """ids int64 (N,), one token of each row in front of the cache: float32 (N, dim), after the last norm."""
        shape, rows, threads = self.shape, len(ids), torch.get_num_threads()
        like = torch.empty((0, shape.shared, shape.head_size), dtype=shape.cache)
        pairs = [attention.cache.layer(number, like, like) for number in range(self._model.layers)]
        keys, values = (self._pointers(pair[part] for pair in pairs) for part in (0, 1))
        longest = -(-max(attention.lengths) // LANES) * LANES
        hidden = torch.empty((rows, shape.dim))
        room = [
            torch.empty(size)
            for size in (
                rows * shape.dim,
                rows * self._wide,
                rows * shape.head_size,
                threads * shape.heads // shape.shared * longest,
                rows,
                (rows + BLOCK) * self._words,
            )
        ]
        step = StepStruct(
            *(rows, longest, ids.data_ptr(), attention.positions.data_ptr()),
            *(ctypes.addressof(keys), ctypes.addressof(values), *pairs[0][0].stride()[:2]),
            *(tensor.data_ptr() for tensor in (hidden, *room)),
        )
        self._library.decode(ctypes.byref(self._model), ctypes.byref(step), threads)
        return hidden

    def _pointers(self, tensors: Any) -> Any:
        return (Pointer * self._model.layers)(*(tensor.data_ptr() for tensor in tensors))
