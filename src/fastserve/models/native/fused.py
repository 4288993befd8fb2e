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


def rms_norm(vectors: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """vectors (..., D), weight float32 (D,): of vectors' type, or of that which autocast gives to what reads them."""
    is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    found: Tensor = _RmsNorm.apply(  # type: ignore[no-untyped-call]
        vectors, weight, epsilon, torch.bfloat16 if is_cast else vectors.dtype
    )
    return found


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
    targets int64 (N,), weights float32 (N,).
    """
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


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        vectors = vectors.contiguous()
        size = vectors.shape[-1]
        inverse = vectors.new_empty(vectors.numel() // size, dtype=torch.float32)
        found = torch.empty_like(vectors, dtype=dtype)
        _call("norm", len(inverse), size, vectors, _is_half(vectors), weight, epsilon, found, _is_half(found), inverse)
        ctx.save_for_backward(vectors, weight, inverse)
        ctx.dtype = dtype
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        vectors, weight, inverse = ctx.saved_tensors
        gradient = gradient.to(ctx.dtype).contiguous()
        found, of_weight = torch.empty_like(vectors), torch.empty_like(weight)
        about = (vectors, _is_half(vectors), weight, inverse, gradient, _is_half(gradient))
        _call("norm_gradient", len(inverse), vectors.shape[-1], *about, found, of_weight)
        return found, of_weight, None, None


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
    return ctypes.c_int64(one)
