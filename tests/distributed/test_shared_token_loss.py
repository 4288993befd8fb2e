"""Workers that share the loss in chunks have the gradients of one, with tied and free heads, checkpointed or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import run_workers
from safetensors.torch import load_file

MEMBER = str(Path(__file__).with_name("token_loss_member.py"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_workers(1, [MEMBER, "alone", str(folder)])
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_have_the_gradients_of_one(alone: Path, tmp_path: Path, strategy: str) -> None:
    run_workers(2, [MEMBER, strategy, str(tmp_path)], seconds=250)
    for path in alone.iterdir():
        expected = load_file(path)
        found = load_file(tmp_path / path.name.replace("alone", strategy))
        assert len(expected) == 2 * 9 + 2 + ("False-" in path.name)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.any()
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
