"""Causal attention by `attention.c`: of whole rows, with its gradients, and of what a row goes on by."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastserve import device
from fastserve.models.native.build import library

SOURCE = Path(__file__).with_name("attention.c")
LANES = 16
LONGEST = 4096
"""Tokens of a row; the scores of longer ones do not stay in a core's cache."""


class PackedStruct(ctypes.Structure):
    """`Packed` of attention.c."""

    _fields_ = (
        ("rows", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("shared", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("half", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("before", ctypes.c_int32),
        ("offsets", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((f"{name}_{of}", ctypes.c_int64) for name in ("query", "key", "value") for of in ("token", "head")),
        *((name, ctypes.c_void_p) for name in ("output", "sums", "of_output", "of_query", "of_key", "of_value")),
    )


def serves(query: Tensor, key: Tensor, value: Tensor, rows: int, longest: int) -> bool:
    """Whether rows are attended in C on this machine: enough of them for its threads, none too long.

    query (N, H, D), key and value (N, K, D). longest: keys of a row.
    """
    return (
        not torch.compiler.is_compiling()
        and query.dtype == key.dtype == value.dtype
        and is_there(query.dtype)
        and query.device.type == "cpu"
        and query.shape[-1] % LANES == 0
        and longest <= LONGEST
        and rows * key.shape[1] >= torch.get_num_threads()
    )


def is_there(dtype: torch.dtype) -> bool:
    """Whether this machine can build it, and has instructions for numbers of the type."""
    flags = {torch.float32: frozenset[str](), torch.bfloat16: frozenset({"avx512_bf16"})}
    return dtype in flags and flags[dtype] <= device.processor_flags() and library(SOURCE) is not None


def attend_rows(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, scale: float) -> Tensor:
    """query (N, H, D), key and value (N, K, D), offsets int64 (B + 1,): (N, H, D)."""
    found: Tensor = _Attention.apply(query, key, value, offsets, scale)  # type: ignore[no-untyped-call]
    return found


def attend_chunk(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The last queries (N, H, D) of a row of T tokens, of which key and value (T, K, D) are: (N, H, D). No gradient."""
    query, key, value = _readable(query), _readable(key), _readable(value)
    output = query.new_empty(query.shape)
    offsets = torch.tensor([0, len(query)])
    packed = _packed(query, key, value, output, None, offsets, scale)
    packed.before = len(key) - len(query)
    _library().forward(ctypes.byref(packed), torch.get_num_threads())
    return output


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, scale: float) -> Tensor:
        query, key, value = _readable(query), _readable(key), _readable(value)
        output = query.new_empty(query.shape)
        sums = query.new_empty(query.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums, offsets)
        ctx.scale = scale
        packed = _packed(query, key, value, output, sums, offsets, scale)
        _library().forward(ctypes.byref(packed), torch.get_num_threads())
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, sums, offsets = ctx.saved_tensors
        packed = _packed(query, key, value, output, sums, offsets, ctx.scale)
        of_output = of_output.contiguous()
        found = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
        packed.of_output = of_output.data_ptr()
        packed.of_query, packed.of_key, packed.of_value = (part.data_ptr() for part in found)
        _library().backward(ctypes.byref(packed), torch.get_num_threads())
        return *found, None, None


def _library() -> Any:
    return library(SOURCE)


def _readable(part: Tensor) -> Tensor:
    """Whole words of two numbers of bfloat16 for every token and head."""
    token, head, one = part.stride()
    return part if one == 1 and token % 2 == head % 2 == part.storage_offset() % 2 == 0 else part.contiguous()


def _packed(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, sums: Tensor | None, offsets: Tensor, scale: float
) -> PackedStruct:
    (_, heads, size), shared = query.shape, key.shape[1]
    return PackedStruct(
        len(offsets) - 1,
        heads,
        shared,
        size,
        int(query.dtype == torch.bfloat16),
        scale,
        0,
        offsets.data_ptr(),
        *(part.data_ptr() for part in (query, key, value)),
        *(part.stride(dim) for part in (query, key, value) for dim in (0, 1)),
        output.data_ptr(),
        None if sums is None else sums.data_ptr(),
    )
