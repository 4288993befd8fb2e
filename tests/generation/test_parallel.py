"""A network that is shared by several processes writes what it writes alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_decoder import PROMPT, TOKENS, decoder

from fastserve.errors import ConfigError
from fastserve.generation.reference import generate
from fastserve.generation.sampling import Sampling
from fastserve.models.tensor_parallel import check, share

SCRIPT = Path(__file__).with_name("shared_decoder.py")


def free_address() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


def start(address: str, rank: int, form: str, tied: str, *seconds: str) -> subprocess.Popen[str]:
    words = [sys.executable, str(SCRIPT), address, str(rank), "2", form, tied, *seconds]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("form", "tied"), [("llama", "tied"), ("qwen3", "free")])
def test_two_processes_write_what_one_writes(form: str, tied: str) -> None:
    alone = decoder(form, tied == "tied")
    (expected,) = generate(alone, [PROMPT], Sampling(max_tokens=TOKENS, temperature=0), eos=())
    address = free_address()
    first, second = (start(address, rank, form, tied) for rank in (0, 1))
    try:
        said, _ = first.communicate(timeout=120)
        assert json.loads(said.splitlines()[-1]) == expected.ids
        assert second.wait(timeout=30) == 0  # it heard that it is over
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_the_others_end_when_the_first_is_gone() -> None:
    address = free_address()
    first, second = (start(address, rank, "llama", "tied", "100") for rank in (0, 1))
    try:
        assert first.stdout is not None
        first.stdout.readline()
        first.kill()
        assert second.wait(timeout=60) != 0
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_shares_together_are_the_whole() -> None:
    for name, weight in decoder("llama", True).state_dict().items():
        parts = [share(name, weight, rank, 2) for rank in (0, 1)]
        if parts[0].shape == weight.shape:
            assert "proj" not in name
        else:
            dim = 0 if parts[0].shape[1:] == weight.shape[1:] else 1
            assert torch.equal(torch.cat(parts, dim), weight)


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="key_value_heads = 4 cannot be split among 3 processes"):
        check(decoder("llama", True), 3)
