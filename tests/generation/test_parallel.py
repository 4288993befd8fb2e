"""A network that is shared by several processes writes what it writes alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_decoder import PROMPT, PROMPTS, TOKENS, decoder

from fastserve.errors import ConfigError
from fastserve.generation.engine import Engine
from fastserve.generation.forms import form_of
from fastserve.generation.orders import EngineOptions
from fastserve.generation.precision import Precision
from fastserve.generation.reference import generate
from fastserve.generation.runner import Part
from fastserve.generation.sampling import Sampling
from fastserve.models.tensor_parallel import check, share, share_of_change

SCRIPT = Path(__file__).with_name("shared_decoder.py")


@contextmanager
def two_processes(*words: str) -> Iterator[list[subprocess.Popen[str]]]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    command = [sys.executable, str(SCRIPT), port]
    processes = [
        subprocess.Popen([*command, rank, "2", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def told_by_two(form: str, tied: str, precision: Precision) -> dict[str, Any]:
    with two_processes(form, tied, precision) as (first, second):
        said, errors = first.communicate(timeout=120)
        assert first.returncode == 0, errors
        assert second.wait(timeout=30) == 0  # it heard that it is over
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.parametrize(("form", "tied"), [("llama", "tied"), ("qwen3", "free")])
def test_two_processes_write_what_one_writes(form: str, tied: str) -> None:
    alone = decoder(form, tied == "tied")
    expected, *crowd = generate(alone, [PROMPT, *PROMPTS], Sampling(max_tokens=TOKENS, temperature=0), eos=())
    told = told_by_two(form, tied, "float32")
    assert told["written"] == expected.ids
    assert told["plain"] == expected.ids
    assert told["texts"] == [one.ids for one in crowd]
    assert told["preemptions"] > 0
    whole = sum(parameter.nbytes for parameter in alone.parameters())
    both = sum(weight.nbytes for name, weight in alone.named_parameters() if "_proj" not in name)
    assert told["bytes"] == [both + (whole - both) // 2] * 2


@pytest.mark.parametrize(("precision", "off"), [("float16", 1e-3), ("bfloat16", 0.05), ("int8", 0.05)])
def test_lower_precisions_are_as_near_as_alone(precision: Precision, off: float) -> None:
    alone = decoder("llama", False)
    exact, rounded = (
        form_of(alone, kind, {}).runner(1).read([Part(0, 0, PROMPT, 1)])[0] for kind in ("float32", precision)
    )
    found = torch.tensor(told_by_two("llama", "free", precision)["logits"])
    size = float(exact.std())
    assert float((rounded - exact).std()) < off * size
    assert 0 < float((found - exact).std()) < off * size


def test_the_others_end_when_the_first_is_gone() -> None:
    with two_processes("llama", "tied", "float32", "100") as (first, second):
        assert first.stdout is not None
        first.stdout.readline()
        first.kill()
        assert second.wait(timeout=60) != 0


def test_shares_together_are_the_whole() -> None:
    for name, weight in decoder("llama", True).state_dict().items():
        parts = [share(name, weight, rank, 2) for rank in (0, 1)]
        if parts[0].shape == weight.shape:
            assert "proj" not in name
        else:
            dim = 0 if parts[0].shape[1:] == weight.shape[1:] else 1
            assert torch.equal(torch.cat(parts, dim), weight)


@pytest.mark.parametrize("layer", ["layers.0.self_attn.q_proj", "layers.0.mlp.down_proj", "lm_head"])
def test_shares_of_an_adapter_change_the_shares(layer: str) -> None:
    down, up = torch.randn(2, 8), torch.randn(6, 2)
    for rank in (0, 1):
        one, other = share_of_change(layer, down, up, rank, 2)
        assert torch.allclose(other @ one, share(f"{layer}.weight", up @ down, rank, 2), atol=1e-5)


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="key_value_heads = 4 cannot be split among 3 processes"):
        check(decoder("llama", True), 3)


def test_an_engine_does_not_share_a_network_by_itself() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel = 2, but this network is computed by 1"):
        Engine(decoder("llama", True), None, EngineOptions(tensor_parallel=2)).prepare()
