"""A linear layer whose weights lie as `decode.c` reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

import torch
from torch import Tensor

from fastserve import device
from fastserve.models.fused import silu_product
from fastserve.models.native.build import library

SOURCE = Path(__file__).with_name("decode.c")
Kind = Literal["float32", "bfloat16", "int8", "int4"]
KINDS: dict[Kind, tuple[int, torch.dtype, frozenset[str]]] = {
    "float32": (0, torch.float32, frozenset()),
    "bfloat16": (1, torch.bfloat16, frozenset({"avx512_bf16"})),
    "int8": (2, torch.int8, frozenset({"avx512_vnni"})),
    "int4": (3, torch.int8, frozenset({"avx512_vnni"})),
}
"""By name: its number in C, the type of its weights, and what a processor needs for it."""
PAIR = 32
"""Outputs that are computed together: two panels of 16."""
SPAN = 32
"""Inputs that have a scale of their own, of weights of 4 bits; rows of inputs have a multiple of it."""
BLOCK = 12
"""Rows whose sums stay in registers."""
MANY = 96
"""Rows from which on another kernel is asked, where there is one."""


class LinearStruct(ctypes.Structure):
    """`Linear` of decode.c."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("padded", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("kept", ctypes.c_int32),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    )


def decoding() -> ctypes.CDLL | None:
    """`decode.c`, where it can be built."""
    return library(SOURCE)


def serves(kind: str, weight: Tensor) -> TypeGuard[Kind]:
    """Whether there are such products for a weight on this machine."""
    known = kind in KINDS and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    return known and KINDS[cast(Kind, kind)][2] <= device.processor_flags() and decoding() is not None


class Panels:
    """weight (out, in), bias (out,). gated: the first half of the outputs gates the other, by SiLU.

    A call takes (N, in) of float32 or bfloat16 and gives (N, out), or (N, out / 2), of the same type. scales: of
    weights of 8 bits for each output (out,), of those of 4 bits, -8 to 7, for every `SPAN` inputs (out, spans); inputs
    are then rounded to 8 bits, row by row. many: what computes the same (N, out) sooner where there are many rows.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        kind: Kind,
        *,
        gated: bool = False,
        scales: Tensor | None = None,
        many: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        number, dtype, _ = KINDS[kind]
        outputs, inputs = weight.shape
        self.gated, self.many = gated, many
        self.kept = outputs // 2 if gated else outputs
        padded = -(-inputs // SPAN) * SPAN
        self.words = padded * dtype.itemsize // 4 + (padded // SPAN if kind == "int4" else 0)
        """Of 4 bytes, of a row of inputs."""
        self._library: Any = decoding()
        rows = _laid_out(outputs, gated)
        weight = weight.detach().to(dtype).contiguous()
        self._kept_alive = [
            self._panels(weight, rows, padded, halved=kind == "int4"),
            _spread(bias, rows),
            _spread(scales, rows),
            _spread(128 * weight.sum(1, dtype=torch.int32), rows) if kind == "int8" else None,
        ]
        pointers = [None if part is None else part.data_ptr() for part in self._kept_alive]
        self.struct = LinearStruct(number, inputs, padded, len(rows), self.kept, *pointers)

    def __deepcopy__(self, memo: object) -> Panels:
        return self  # it never changes

    def _panels(self, weight: Tensor, rows: Tensor, padded: int, *, halved: bool) -> Tensor:
        outputs, inputs, size = len(rows), weight.shape[1], weight.element_size()
        found = torch.empty(outputs * padded * size, dtype=torch.uint8)
        self._library.lay_out(_at(weight), _at(rows), outputs, inputs, padded, size, _at(found))
        if not halved:
            return found
        half = torch.empty(len(found) // 2, dtype=torch.uint8)
        self._library.halve(_at(found), outputs // PAIR, padded, _at(half))
        return half

    def __call__(self, tokens: Tensor) -> Tensor:
        if self.many is not None and len(tokens) >= MANY:
            found = self.many(tokens)
            return silu_product(found) if self.gated else found
        tokens, rows, threads = tokens.contiguous(), len(tokens), torch.get_num_threads()
        words = torch.empty((rows + BLOCK) * self.words, dtype=torch.int32)
        scales, into = torch.empty(rows), tokens.new_empty((rows, self.kept))
        if not rows:
            return into
        half = int(tokens.dtype is torch.bfloat16)
        self._library.linear(
            ctypes.byref(self.struct), rows, *map(_at, (tokens, words, scales, into)), half, int(self.gated), threads
        )
        return into


def _laid_out(outputs: int, gated: bool) -> Tensor:
    """int32: the output at each place of the panels, or -1 for none."""
    if not gated:
        rows = torch.arange(-(-outputs // PAIR) * PAIR, dtype=torch.int32)
        return torch.where(rows < outputs, rows, -1)
    half = outputs // 2
    gates = _laid_out(half, False)[: -(-half // (PAIR // 2)) * (PAIR // 2)].view(-1, PAIR // 2)
    return torch.stack([gates, torch.where(gates < 0, gates, gates + half)], 1).flatten()


def _spread(values: Tensor | None, rows: Tensor) -> Tensor | None:
    """Values of the outputs (out,) or (out, spans) at their places in the panels, a pair's together; 0 where there is
    no output."""
    if values is None:
        return None
    values = values.detach().reshape(len(values), -1)
    found = values[rows.clamp(min=0).long()].masked_fill(rows[:, None] < 0, 0)
    found = found.view(-1, PAIR, values.shape[1]).transpose(1, 2).contiguous()
    return found if found.dtype is torch.int32 else found.float()


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
