"""What is done in C are the plain formulas, with their gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from causal_samples import decoder, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastserve.models import fused
from fastserve.models.attention import PackedCausal, attend, visible
from fastserve.models.decoder import angles
from fastserve.models.native import attention
from fastserve.models.native import fused as native
from fastserve.models.native.build import library
from fastserve.tasks.token_loss import plain_token_loss, token_loss

TYPES = (torch.float32, torch.bfloat16)
NEAR = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Relative, of all numbers together: about what the type itself rounds off."""
needs_library = pytest.mark.skipif(library(native.SOURCE) is None, reason="no compiler or no AVX-512 here")
COMPUTED = [dtype for dtype in TYPES if attention.is_there(dtype)]
"""By attention in C."""
needs_halves = pytest.mark.skipif(torch.bfloat16 not in COMPUTED, reason="no compiler or no AVX-512 for bfloat16 here")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def error(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None
    assert expected is not None
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def differentiate(output: Tensor, slope: Tensor) -> None:
    torch.autograd.backward(output, slope.to(output.dtype))


@needs_halves
def test_a_compiler_that_does_not_know_the_instructions_builds_nothing(tmp_path: Path) -> None:
    old = tmp_path / "cc"
    old.write_text('#!/bin/sh\nexec gcc "$@" -mno-avx512bf16\n')
    old.chmod(0o755)
    code = (
        "from fastserve import log\n"
        "log.configure()\n"
        "import torch\n"
        "from fastserve.models.native import attention\n"
        "print(attention.is_there(torch.bfloat16))\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "CC": str(old)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
    assert "too old for the processor's instructions for bfloat16" in done.stderr


# Attention


def by_formula(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, scale: float) -> Tensor:
    total = len(query)
    row = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    sees = visible(torch.arange(total), torch.arange(total), None) & (row[:, None] == row)
    heads = [part.transpose(0, 1) for part in (query, key, value)]
    return attend(heads[0], heads[1], heads[2], sees, scale=scale).transpose(0, 1)


def attended(
    lengths: Sequence[int], heads: int, shared: int, size: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradient of query, key and value, side by side in one tensor, by C and by the formula."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    joined = drawn(int(offsets[-1]), heads + 2 * shared, size).to(dtype)
    slope = drawn(int(offsets[-1]), heads, size, seed=1).to(dtype)
    found = []
    for by, wide in ((attention.attend_rows, dtype), (by_formula, torch.float64)):
        whole = joined.to(wide, copy=True).requires_grad_()
        query, key, value = torch.split(whole, [heads, shared, shared], 1)
        output = by(query, key, value, offsets, size**-0.5)
        differentiate(output, slope)
        assert whole.grad is not None
        found.append([output, whole.grad])
    return found[0], found[1]


@needs_library
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(COMPUTED or TYPES),
    st.lists(st.integers(0, 150), min_size=1, max_size=6).filter(any),
    st.sampled_from([(1, 1), (6, 2), (5, 5), (8, 1)]),
    st.sampled_from([16, 48, 64, 80, 128]),
    st.integers(1, 3),
)
def test_attention_and_its_gradients_are_the_formula(
    dtype: torch.dtype, lengths: list[int], heads: tuple[int, int], size: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    for found, expected in zip(*attended(lengths, *heads, size, dtype), strict=True):
        assert error(found, expected) < NEAR[dtype]


@needs_library
@pytest.mark.parametrize("dtype", COMPUTED)
def test_a_long_row_is_attended_as_the_formula_does(dtype: torch.dtype) -> None:
    for found, expected in zip(*attended([1031], 2, 1, 64, dtype), strict=True):
        assert error(found, expected) < NEAR[dtype]


@needs_library
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(COMPUTED or TYPES),
    st.integers(0, 120),
    st.integers(1, 120),
    st.sampled_from([(1, 1), (6, 2)]),
    st.sampled_from([16, 64, 80]),
)
def test_what_a_row_goes_on_by_sees_what_was_before(
    dtype: torch.dtype, before: int, count: int, heads: tuple[int, int], size: int
) -> None:
    """The keys lie as a cache has them, with room behind each head's."""
    total = before + count
    query = drawn(count, heads[0], size).to(dtype)
    keys, values = (drawn(heads[1], total + 7, size, seed=seed).to(dtype)[:, :total].transpose(0, 1) for seed in (1, 2))
    found = attention.attend_chunk(query, keys, values, size**-0.5)
    rows = [part.transpose(0, 1).double() for part in (query, keys, values)]
    sees = visible(torch.arange(before, total), torch.arange(total), None)
    assert error(found, attend(rows[0], rows[1], rows[2], sees, scale=size**-0.5).transpose(0, 1)) < NEAR[dtype]


@needs_library
@pytest.mark.parametrize("dtype", COMPUTED)
def test_no_number_depends_on_how_many_threads_there_are(dtype: torch.dtype) -> None:
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(attended([5, 90, 33, 64], 6, 2, 64, dtype)[0])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@needs_halves
def test_it_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without window and cap; other rows are torch's."""
    taken: list[torch.dtype] = []

    def note(query: Tensor, *_: object) -> Tensor:
        taken.append(query.dtype)
        return query

    monkeypatch.setattr(attention, "attend_rows", note)
    offsets, parts = torch.tensor([0, 4, 9, 20]), [drawn(20, heads, 16) for heads in (4, 2, 2)]
    halves, wide = [part.bfloat16() for part in parts], [part.double() for part in parts]
    for chosen, limits in ((halves, {}), (parts, {}), (wide, {}), (halves, {"window": 3}), (halves, {"cap": 2.0})):
        PackedCausal(offsets)(0, *chosen, scale=0.3, **limits)
    assert taken == [torch.bfloat16, torch.float32]


# Steps between products


STEPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "rms_norm": (fused.rms_norm, fused.plain_rms_norm, [(77, 48), (48,)]),
    "rms_norm of heads": (fused.rms_norm, fused.plain_rms_norm, [(5, 3, 64), (64,)]),
    "silu_product": (fused.silu_product, fused.plain_silu_product, [(77, 96)]),
}


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", STEPS)
def test_value_and_gradients_are_those_of_the_formula(name: str, dtype: torch.dtype) -> None:
    fast, plain, shapes = STEPS[name]
    constants = (1e-6,) if name.startswith("rms_norm") else ()
    found = []
    for by, wide in ((fast, None), (plain, torch.float64)):
        vectors = drawn(*shapes[0]).to(dtype).to(wide or dtype, copy=True).requires_grad_()
        weights = [drawn(*shape, seed=1).to(wide or torch.float32, copy=True).requires_grad_() for shape in shapes[1:]]
        output = by(vectors, *weights, *constants)
        differentiate(output, drawn(*output.shape, seed=2).to(dtype))
        found.append([output, vectors.grad, *(weight.grad for weight in weights)])
    for mine, expected in zip(*found, strict=True):
        assert error(mine, expected) < NEAR[dtype]


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
def test_rotation_of_a_part_of_the_heads(dtype: torch.dtype) -> None:
    rotation = angles(torch.arange(50), 64, 1e4)
    joined, slope = drawn(50, 8, 64).to(dtype), drawn(50, 6, 64, seed=1).to(dtype)
    mine, plain = joined.clone().requires_grad_(), joined.double().requires_grad_()
    found, expected = fused.rotate(mine[:, :6], *rotation), fused.plain_rotate(plain[:, :6], *rotation)
    differentiate(found, slope)
    differentiate(expected, slope)
    assert error(found, expected) < NEAR[dtype]
    assert error(mine.grad, plain.grad) < NEAR[dtype]


@needs_library
def test_what_autocast_would_round_is_given_rounded() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = fused.rms_norm(drawn(3, 16).requires_grad_(), nn.Parameter(torch.ones(16)), 1e-6)
    assert found.dtype == torch.bfloat16


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_loss_of_tokens_and_its_gradients(dtype: torch.dtype, z_loss: float) -> None:
    head = nn.Linear(32, 112, bias=False)
    targets, weights = torch.arange(50) * 2, drawn(50, seed=3).abs() + 0.1
    found = []
    for by, is_half in ((token_loss, dtype == torch.bfloat16), (plain_token_loss, False)):
        hidden = (3 * drawn(50, 32)).requires_grad_()
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss = by(head, hidden, targets, weights, z_loss=z_loss)
        differentiate(loss, torch.ones(()))
        found.append([loss, hidden.grad, head.weight.grad])
    near = {torch.float32: 1e-5, torch.bfloat16: 0.01}[dtype]
    for mine, expected in zip(*found, strict=True):
        assert error(mine, expected) < near


@needs_library
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    """By it a run that diverged is known."""
    logits = drawn(3, 32).to(dtype)
    logits[1, 5] = torch.nan
    losses, _ = native.entropy_(logits, torch.tensor([0, 1, 2]), torch.ones(3), 0.0)
    assert losses.isnan().tolist() == [False, True, False]
    gate_and_up = drawn(1, 64).to(dtype)
    gate_and_up[0, 3] = torch.nan
    assert fused.silu_product(gate_and_up).isnan().nonzero().tolist() == [[0, 3]]
    if attention.is_there(dtype):
        parts = [drawn(4, 1, 16, seed=seed).to(dtype) for seed in range(3)]
        parts[1][2] = torch.nan
        found = attention.attend_rows(parts[0], parts[1], parts[2], torch.tensor([0, 4]), 0.25)
        assert found.isnan().any(-1)[:, 0].tolist() == [False, False, True, True]


@needs_library
def test_targets_must_be_among_the_logits() -> None:
    for target in (-1, 32):
        with pytest.raises(IndexError, match="32 logits"):
            native.entropy_(drawn(1, 32), torch.tensor([target]), torch.ones(1), 0.0)


@needs_halves
@pytest.mark.parametrize("form", ["llama", "qwen3"])
def test_a_network_trains_as_with_torch_alone(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of all weights differ from those in float32 no more than torch's do."""
    network = decoder(form=form, dim=64, heads=2, key_value_heads=1, feedforward=64)
    tokens = rows()

    def gradients(dtype: torch.dtype) -> Tensor:
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden = network.hidden(tokens.values.long(), PackedCausal(tokens.offsets))
            targets, weights = tokens.values.long().roll(-1), torch.ones(len(hidden))
            differentiate(token_loss(network.head, hidden, targets, weights), torch.ones(()))
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])

    in_c = gradients(torch.bfloat16)
    monkeypatch.setattr(native, "serves", lambda *_: False)
    monkeypatch.setattr(attention, "serves", lambda *_: False)
    expected, by_torch = gradients(torch.float32), gradients(torch.bfloat16)
    assert not torch.equal(in_c, by_torch)
    assert error(in_c, expected) < 1.2 * error(by_torch, expected)
