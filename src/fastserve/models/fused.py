"""Steps of a decoder that torch would make in several passes over memory, in fewer, with their gradients by hand.

`plain_...` are the formulas; they are also what a compiler is given, which fuses them itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fastserve.models.native import fused as native


def plain_rms_norm(vectors: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019), computed in float32 at least."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (weight * wide).to(vectors.dtype)


def plain_silu_product(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up of (N, 2 * F): (N, F)."""
    gate, up = gate_and_up.chunk(2, -1)
    return functional.silu(gate) * up


def plain_rotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate feature i of (N, H, D) together with feature i + D / 2.

    cosine (N, 1, D), each half the same; sine (N, 1, D), the first half with its sign changed.
    """
    return vectors * cosine + vectors.roll(vectors.shape[-1] // 2, -1) * sine


def rms_norm(vectors: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return added_norm(vectors, None, weight, epsilon)[1]


def added_norm(vectors: Tensor, added: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The sum of vectors and what is added to them, if anything, and the sum normalized."""
    if goes_native(vectors, added, weight):
        return native.added_norm(vectors, added, weight, epsilon)
    together = vectors if added is None else vectors + added
    if torch.compiler.is_compiling() or not _is_full(together) or together.dtype != weight.dtype:
        return together, plain_rms_norm(together, weight, epsilon)
    found: Tensor = _RmsNorm.apply(together, weight, epsilon)  # type: ignore[no-untyped-call]
    return together, found


def goes_native(vectors: Tensor, added: Tensor | None, weight: Tensor) -> bool:
    """Whether `native.added_norm` takes them."""
    size = vectors.shape[-1]
    fits = added is None or (vectors.dtype in (torch.float32, added.dtype) and native.serves(added, size))
    return fits and weight.dtype == torch.float32 and native.serves(vectors, size)


def silu_product(gate_and_up: Tensor) -> Tensor:
    if native.serves(gate_and_up, gate_and_up.shape[1] // 2):
        return native.silu_product(gate_and_up)
    if torch.compiler.is_compiling():
        return plain_silu_product(gate_and_up)
    found: Tensor = _SiluProduct.apply(gate_and_up)  # type: ignore[no-untyped-call]
    return found


def rotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    cosine, sine = cosine.to(vectors.dtype), sine.to(vectors.dtype)
    if vectors.shape[-1] % 2 == 0 and native.serves(vectors, vectors.shape[-1] // 2):
        return native.rotate(vectors, cosine, sine)
    if torch.compiler.is_compiling():
        return plain_rotate(vectors, cosine, sine)
    found: Tensor = _Rotate.apply(vectors, cosine, sine)  # type: ignore[no-untyped-call]
    return found


def _is_full(tensor: Tensor) -> bool:
    """Whether sums of squares keep their precision in the tensor's own type."""
    return tensor.dtype in (torch.float32, torch.float64)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).square_()
        inverse.div_(vectors.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(vectors, weight, inverse)
        normal: Tensor = vectors * inverse
        return normal.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        vectors, weight, inverse = ctx.saved_tensors
        normal = vectors * inverse
        rows = tuple(range(normal.dim() - 1))
        of_weight = (gradient * normal).sum(rows)
        weighted = gradient * weight
        along = torch.linalg.vecdot(weighted, normal).unsqueeze(-1).div_(-vectors.shape[-1])
        return weighted.addcmul_(normal, along).mul_(inverse), of_weight, None


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, -1)
        found = torch.empty_like(gate_and_up)
        of_gate, of_up = found.chunk(2, -1)
        torch.mul(functional.silu(gate), gradient, out=of_up)
        of_gate.copy_(torch.ops.aten.silu_backward(gradient * up, gate))
        return found


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(vectors, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotated(gradient, cosine, -sine), None, None


def _rotated(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    return (vectors * cosine).addcmul_(vectors.roll(vectors.shape[-1] // 2, -1), sine)
