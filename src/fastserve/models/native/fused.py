"""`fused.c`: what a decoder's training does between its products of matrices, with its gradients."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastserve.models.native.build import library

SOURCE = Path(__file__).with_name("fused.c")
LANES = 16
TYPES = (torch.float32, torch.bfloat16)


def serves(numbers: Tensor, size: int) -> bool:
    """Whether these numbers, so many side by side, are computed in C on this machine."""
    return (
        numbers.device.type == "cpu"
        and numbers.dtype in TYPES
        and size % LANES == 0
        and not torch.compiler.is_compiling()
        and library(SOURCE) is not None
    )


def added_norm(vectors: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """vectors (..., D) plus what is added, and the sum normalized; weight float32 (D,).

    The second is of vectors' type, or of that which autocast gives to what reads it.
    """
    is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    dtype = torch.bfloat16 if is_cast else vectors.dtype
    found: tuple[Tensor, Tensor] = _AddedNorm.apply(  # type: ignore[no-untyped-call]
        vectors, added, weight, epsilon, dtype
    )
    return (vectors if added is None else found[0]), found[1]


def silu_product(gate_and_up: Tensor) -> Tensor:
    """(N, 2 * F): (N, F)"""
    found: Tensor = _SiluProduct.apply(gate_and_up)  # type: ignore[no-untyped-call]
    return found


def rotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """vectors (N, H, D), D a multiple of 32, cosine and sine (N, 1, D) of the same type."""
    found: Tensor = _Rotate.apply(vectors, cosine.contiguous(), sine.contiguous())  # type: ignore[no-untyped-call]
    return found


def entropy_(logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy and log(sum(exp(logits))) of rows, each float32 (N,).

    logits (N, V) become their gradients: those of weights * (cross-entropy + z_loss * log(sum(exp(logits)))^2).
    targets int64 (N,), weights float32 (N,). IndexError where a target is none of the V.
    """
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise IndexError(f"targets from {targets.min()} to {targets.max()}, but there are {logits.shape[1]} logits")
    losses, wholes = torch.empty_like(weights), torch.empty_like(weights)
    _call(
        "entropy",
        *logits.shape,
        logits,
        _is_half(logits),
        targets.contiguous(),
        weights.contiguous(),
        z_loss,
        losses,
        wholes,
    )
    return losses, wholes


class NormStruct(ctypes.Structure):
    """`Norm` of fused.c."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("added", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
        ("sum", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("inverse", ctypes.c_void_p),
    )


class NormGradientStruct(ctypes.Structure):
    """`NormGradient` of fused.c."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sum", "weight", "inverse", "of_sum", "of_y")),
        *((name, ctypes.c_void_p) for name in ("of_x", "of_added", "of_weight")),
    )


class _AddedNorm(torch.autograd.Function):
    """The sum, or nothing where nothing is added, and the normalized sum."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, added: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        vectors, added = vectors.contiguous(), None if added is None else added.contiguous()
        size = vectors.shape[-1]
        inverse = vectors.new_empty(vectors.numel() // size, dtype=torch.float32)
        together = None if added is None else torch.empty_like(vectors)
        found = torch.empty_like(vectors, dtype=dtype)
        ctx.kinds = _kinds(vectors, added, found)
        parts = (_address(vectors), _address(added), _address(weight), epsilon)
        norm = NormStruct(len(inverse), size, *parts, _address(together), _address(found), _address(inverse))
        _call("norm", ctypes.byref(norm), ctx.kinds)
        ctx.save_for_backward(vectors if together is None else together, weight, inverse)
        ctx.added, ctx.dtype = None if added is None else added.dtype, dtype
        return together, found

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_sum: Tensor | None, of_found: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        together, weight, inverse = ctx.saved_tensors
        if of_found is None:
            of_added = None if ctx.added is None or of_sum is None else of_sum.to(ctx.added)
            return of_sum, of_added, None, None, None
        of_found = of_found.to(ctx.dtype).contiguous()
        of_sum = None if of_sum is None else of_sum.contiguous()
        found, of_weight = torch.empty_like(together), torch.empty_like(weight)
        is_same = ctx.added == found.dtype  # then both have the same gradient
        of_added = None if ctx.added is None or is_same else torch.empty_like(together, dtype=ctx.added)
        parts = (together, weight, inverse, of_sum, of_found, found, of_added, of_weight)
        norm = NormGradientStruct(len(inverse), together.shape[-1], *map(_address, parts))
        _call("norm_gradient", ctypes.byref(norm), ctx.kinds)
        return found, found if is_same else of_added, of_weight, None, None


def _kinds(vectors: Tensor, added: Tensor | None, found: Tensor) -> int:
    """As fused.c counts them."""
    return _is_half(vectors) + 2 * (added is not None and _is_half(added)) + 4 * _is_half(found)


def _address(one: Tensor | None) -> int | None:
    return None if one is None else one.data_ptr()


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        gate_and_up = gate_and_up.contiguous()
        ctx.save_for_backward(gate_and_up)
        rows, size = len(gate_and_up), gate_and_up.shape[1] // 2
        found = gate_and_up.new_empty(rows, size)
        _call("gate", rows, size, gate_and_up, _is_half(found), found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gradient, found = gradient.contiguous(), torch.empty_like(gate_and_up)
        _call("gate_gradient", *gradient.shape, gate_and_up, _is_half(found), gradient, found)
        return found


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(vectors, cosine, sine, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _rotated(gradient, *ctx.saved_tensors, back=True), None, None


def _rotated(vectors: Tensor, cosine: Tensor, sine: Tensor, *, back: bool) -> Tensor:
    if vectors.stride()[1:] != (vectors.shape[2], 1):
        vectors = vectors.contiguous()
    found = vectors.new_empty(vectors.shape)
    _call("turn", *vectors.shape, vectors, vectors.stride(0), cosine, sine, _is_half(found), int(back), found)
    return found


def _is_half(numbers: Tensor) -> int:
    return int(numbers.dtype == torch.bfloat16)


def _call(name: str, *arguments: Any) -> None:
    """Tensors are given as addresses, and torch's threads do it."""
    given = [_argument(one) for one in arguments]
    library(SOURCE)[name](*given, torch.get_num_threads())  # type: ignore[index]


def _argument(one: Any) -> Any:
    match one:
        case Tensor():
            return ctypes.c_void_p(one.data_ptr())
        case float():
            return ctypes.c_float(one)
        case int():
            return ctypes.c_int64(one)
    return one
