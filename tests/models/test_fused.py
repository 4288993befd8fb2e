"""Fused steps and their gradients are the plain formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastserve.models import fused
from fastserve.models.decoder import angles

STEPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]], tuple[float, ...]]] = {
    "rms_norm": (fused.rms_norm, fused.plain_rms_norm, [(5, 8), (8,)], (1e-6,)),
    "rms_norm of heads": (fused.rms_norm, fused.plain_rms_norm, [(5, 3, 8), (8,)], (1e-6,)),
    "silu_product": (fused.silu_product, fused.plain_silu_product, [(5, 12)], ()),
}


@pytest.mark.parametrize("name", STEPS)
def test_value_and_gradients_are_those_of_the_formula(name: str) -> None:
    fast, plain, shapes, constants = STEPS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    torch.testing.assert_close(fast(*inputs, *constants), plain(*inputs, *constants))
    assert torch.autograd.gradcheck(lambda *parts: fast(*parts, *constants), inputs)


def test_rotation_keeps_lengths_and_has_the_gradients_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(6, 3, 8, generator=generator, dtype=torch.float64).requires_grad_()
    rotation = angles(torch.arange(6), 8, 100.0)
    found = fused.rotate(vectors, *rotation)
    torch.testing.assert_close(found, fused.plain_rotate(vectors, *(part.double() for part in rotation)))
    torch.testing.assert_close(found.norm(dim=-1), vectors.norm(dim=-1), atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda part: fused.rotate(part, *rotation), vectors)


def test_half_precision_is_normalized_in_single() -> None:
    vectors = torch.full((1, 4), 300.0, dtype=torch.float16)  # whose squares it cannot hold
    assert fused.rms_norm(vectors, torch.ones(4), 1e-6).tolist() == [[1, 1, 1, 1]]
