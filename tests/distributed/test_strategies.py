"""Several workers compute what one computes, with every kind of network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from language_member import FAMILY
from processes import run_workers
from safetensors.torch import load_file

MEMBER = str(Path(__file__).with_name("member.py"))
NETWORKS = ("linear", "bag", "wide-deep", "mlp", "textcnn", "lstm", "transformer")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_workers(1, [MEMBER, "alone", str(folder)])
    return folder


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four workers found."""
    folder = tmp_path_factory.mktemp(request.param)
    run_workers(4, [MEMBER, request.param, str(folder)], seconds=300)
    return folder


@pytest.mark.parametrize("network", [*NETWORKS, *FAMILY])
def test_four_workers_give_the_weights_of_one(alone: Path, shared: Path, network: str) -> None:
    expected, found = (load_file(folder / f"{network}.safetensors") for folder in (alone, shared))
    assert expected.keys() == found.keys()
    weights = [name for name, value in expected.items() if name.startswith("weights/") and value.is_floating_point()]
    apart = sum((found[name] - expected[name]).square().sum() for name in weights)
    moved = sum((expected[name] - expected[name.replace("weights/", "first/")]).square().sum() for name in weights)
    assert apart <= 1e-6 * moved
    assert torch.equal(found["targets"], expected["targets"])
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-3, rtol=1e-3)


def test_steps_in_pieces_are_whole_steps(alone: Path) -> None:
    whole, pieces = (load_file(alone / f"{name}.safetensors") for name in ("decoder", "decoder-in-pieces"))
    apart = sum((whole[name] - pieces[name]).square().sum() for name in whole if name.startswith("weights/"))
    assert 0 < apart < 1e-8


def test_only_adapters_are_trained(alone: Path, shared: Path) -> None:
    pytest.importorskip("peft")
    for folder in (alone, shared):
        found = load_file(folder / "decoder-adapters.safetensors")
        weights = [name.removeprefix("weights/") for name in found if name.startswith("weights/")]
        moved = {name for name in weights if not torch.equal(found[f"weights/{name}"], found[f"first/{name}"])}
        assert moved == {name for name in weights if ".lora_" in name}
