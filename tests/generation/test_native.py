"""Steps and products in C give torch's numbers; where they cannot be built, torch computes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engines import network_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fastserve.generation import native
from fastserve.generation.fast_decoder import FastDecoder, fast_form
from fastserve.generation.native.step import NativeStep
from fastserve.generation.precision import gated_linear_of, linear_of
from fastserve.generation.slots import SlotCache
from fastserve.generation.step_attention import Chunk, StepAttention
from fastserve.models.decoder import Decoder, DecoderOptions
from fastserve.models.native import attention
from fastserve.models.native.build import NEEDED, built
from fastserve.models.network import NetworkShape

SOURCE = Path(native.__file__).with_name("decode.c")
ONE = torch.ones(1, 1)
KINDS = ("float32", "bfloat16", "int8", "int4")
NEAR = {"float32": 2e-6, "bfloat16": 0.01, "int8": 0.02, "int4": 0.15}
needs_library = pytest.mark.skipif(native.decoding() is None, reason="no compiler or no AVX-512 here")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def serving(kind: str) -> str:
    if not native.serves(kind, ONE):
        pytest.skip(f"this processor has no instructions for {kind}")
    return kind


def error(found: Tensor, expected: Tensor) -> float:
    """Relative, of all numbers together."""
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-9))


# Products


@needs_library
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 80),
    has_bias=st.booleans(),
    kind=st.sampled_from(KINDS),
    threads=st.integers(1, 4),
)
def test_products_of_any_size(rows: int, inputs: int, outputs: int, has_bias: bool, kind: str, threads: int) -> None:
    if not native.serves(kind, ONE):
        return
    torch.manual_seed(rows + 100 * inputs)
    torch.set_num_threads(threads)
    weight, tokens = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    bias = torch.randn(outputs) if has_bias else None
    found = linear_of(weight, bias, kind)(tokens)
    expected = functional.linear(tokens.double(), weight.double(), None if bias is None else bias.double())
    assert found.shape == expected.shape
    usual = (tokens.norm(dim=1)[:, None] * weight.norm(dim=1)).norm() / inputs**0.5  # a number may be near 0 by chance
    assert float((found - expected).norm()) <= 3 * NEAR[kind] * float(usual)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [8, 16, 30, 64])
def test_gated_products(kind: str, half: int) -> None:
    torch.manual_seed(0)
    weight, tokens = torch.randn(2 * half, 48) / 7, torch.randn(21, 48)
    found = gated_linear_of(weight, None, serving(kind))(tokens)
    gate, up = (tokens.double() @ weight.double().t()).chunk(2, -1)
    assert error(found, functional.silu(gate) * up) < 2 * NEAR[kind]


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_alone_or_among_others_with_any_number_of_threads(kind: str) -> None:
    torch.manual_seed(0)
    weight, tokens = torch.randn(96, 64), torch.randn(37, 64)
    linear = linear_of(weight, None, serving(kind))
    torch.set_num_threads(1)
    whole = linear(tokens)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(linear(tokens), whole)
        for row in (0, 11, 12, 36):
            assert torch.equal(linear(tokens[row : row + 1]), whole[row : row + 1])


@needs_library
def test_weights_of_four_bits_have_a_scale_for_each_span() -> None:
    """A span of large weights takes nothing from one of small ones, and the largest of each is met."""
    torch.manual_seed(0)
    weight = torch.randn(3, 70)
    weight[:, 32:64] *= 1000
    found = linear_of(weight, None, serving("int4"))(torch.eye(70))
    for part in (slice(0, 32), slice(32, 64), slice(64, 70)):
        largest = weight[:, part].abs().amax(1, keepdim=True)
        assert ((found.t()[:, part] - weight[:, part]).abs() <= largest / 8 * 1.01).all()
        place = weight[:, part].abs().argmax(1, keepdim=True)
        torch.testing.assert_close(
            found.t()[:, part].gather(1, place), weight[:, part].gather(1, place), rtol=1e-5, atol=0
        )


@needs_library
def test_bfloat16_in_and_out_is_rounded_once() -> None:
    torch.manual_seed(0)
    weight, tokens = torch.randn(40, 64), torch.randn(5, 64).bfloat16()
    linear = linear_of(weight, None, serving("bfloat16"))
    found = linear(tokens)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, linear(tokens.float()).bfloat16())


@needs_library
def test_calls_from_several_threads_do_not_meet() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    linears = [linear_of(torch.randn(64, 64), None, "float32") for _ in range(4)]
    tokens = torch.randn(9, 64)
    expected = [linear(tokens) for linear in linears]
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(200):
            if not torch.equal(linears[number](tokens), expected[number]):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


# Whole steps


def steps_of(decoder: FastDecoder, rows: int) -> tuple[list[Tensor], SlotCache]:
    """What is hidden in four steps of rows whose prompts have different lengths, and the cache after them."""
    cache = SlotCache(decoder.layers, rows, decoder.longest)
    starts = [3 + 5 * row % 23 for row in range(rows)]
    torch.manual_seed(1)
    found = []
    with torch.inference_mode():
        for row, start in enumerate(starts):
            attention = StepAttention(cache, [], [Chunk(row, 0, start)])
            decoder.hidden(torch.randint(5, 50, (start,)), attention)
            cache.keep(row, start)
        for step in range(4):
            order = cache.gather(list(range(rows)))
            attention = StepAttention(cache, [Chunk(row, starts[row] + step, 1) for row in order], [])
            found.append(decoder.hidden(torch.randint(5, 50, (rows,)), attention).float())
            for row in range(rows):
                cache.keep(row, starts[row] + step + 1)
    return found, cache


def both_ways(network: object, precision: str, rows: int) -> tuple[list[Tensor], list[Tensor]]:
    """In C, and by torch, of which the same prompts are read before."""
    fast = fast_form(network, precision)  # type: ignore[arg-type]
    assert fast is not None
    assert isinstance(fast.step, NativeStep)
    found, cache = steps_of(fast, rows)
    fast.step = None
    expected, plain = steps_of(fast, rows)
    for number in range(fast.layers):
        for mine, torchs in zip(cache.layer(number, EMPTY, EMPTY), plain.layer(number, EMPTY, EMPTY), strict=True):
            for slot in range(rows):
                written = cache.lengths[slot]
                found.append(mine[cache.places[slot], :, :written].float())
                expected.append(torchs[plain.places[slot], :, :written].float())
    return found, expected


EMPTY = torch.empty(0, 1, 1)


@needs_library
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("rows", [1, 2, 13])
def test_a_step_is_what_torch_computes(kind: str, rows: int) -> None:
    """With biases, norms of heads, windows."""
    for found, expected in zip(*both_ways(network_of(kind), "float32", rows), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_library
def test_heads_smaller_than_a_register_are_torchs() -> None:
    fast = fast_form(network_of("llama"), "float32")
    assert fast is not None
    assert fast.step is None
    assert isinstance(fast.head, native.Panels)


def decoder_of(heads: int, shared: int, head_size: int) -> Decoder:
    torch.manual_seed(0)
    options = DecoderOptions(
        layers=2, dim=heads * head_size, heads=heads, key_value_heads=shared, context=128, feedforward=72
    )
    return Decoder(options, NetworkShape({"tokens": 50}, 50)).eval().requires_grad_(False)


@needs_library
@pytest.mark.parametrize(("heads", "shared", "head_size"), [(1, 1, 16), (6, 1, 32), (5, 5, 48), (4, 2, 64), (3, 1, 80)])
@pytest.mark.parametrize("precision", KINDS)
def test_heads_of_many_forms(heads: int, shared: int, head_size: int, precision: str) -> None:
    network = decoder_of(heads, shared, head_size)
    near = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.05, "int4": 0.05}[serving(precision)]
    for found, expected in zip(*both_ways(network, precision, 5), strict=True):
        assert error(found, expected.double()) < near


@pytest.mark.parametrize("precision", KINDS)
def test_keys_have_16_bits_where_weights_have_8_or_4(precision: str) -> None:
    form = fast_form(decoder_of(4, 2, 64), serving(precision))
    assert form is not None
    cache = SlotCache(form.layers, 1, 64)
    form.hidden(torch.tensor([1, 2, 3]), StepAttention(cache, (), [Chunk(0, 0, 3)]))
    kept = cache.layer(0, ONE, ONE)[0].dtype
    is_short = precision == "bfloat16" or (precision in ("int8", "int4") and attention.is_there(torch.bfloat16))
    assert kept is (torch.bfloat16 if is_short else torch.float32)


# Building


def test_without_a_compiler_torch_computes(tmp_path: Path) -> None:
    """Nothing fails, and what happens is said where a person looks."""
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    code = (
        "import torch\n"
        "from fastserve import log\n"
        "log.configure()\n"
        "from fastserve.generation.precision import linear_of\n"
        "print(linear_of(torch.ones(2, 3), None, 'float32')(torch.ones(1, 3)).tolist())\n"
    )
    for value, said in (({"CC": str(broken)}, "no such thing"), ({"FASTSERVE_NATIVE": "0"}, "")):
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout == "[[3.0, 3.0]]\n", done.stderr
        assert said in done.stderr
        assert not list(tmp_path.glob("cache/**/*.so"))


@needs_library
def test_a_folder_that_others_write_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "fastserve"
    shared.mkdir()
    shared.chmod(0o777)
    code = (
        "from fastserve import log\n"
        "from fastserve.generation.native import decoding\n"
        "log.configure()\n"
        "print(decoding())\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "None\n"
    assert "chmod 700" in done.stderr


@needs_library
def test_it_is_built_once(tmp_path: Path) -> None:
    compiler = os.environ.get("CC") or "gcc"
    first = built(SOURCE, compiler, tmp_path)
    changed = first.stat().st_mtime_ns
    assert built(SOURCE, compiler, tmp_path) == first
    assert first.stat().st_mtime_ns == changed
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert ctypes.CDLL(str(first)).decode


def test_what_it_needs_is_named_as_linux_names_it() -> None:
    assert all(flag.startswith("avx512") for flag in NEEDED)
