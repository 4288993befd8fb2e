"""Every built-in network with the text pipeline that it asks for: what was trained is what answers after loading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import NetworkSpec, ParityRow
from fastserve.bundle.predictor import Predictor
from fastserve.bundle.runtimes.torch import build_network
from fastserve.config import TextConfig
from fastserve.models import NetworkShape, RaggedTensor, build, find
from fastserve.models.builtin import BUILTIN
from fastserve.models.network import HasFiles
from fastserve.text.pipeline import TextPipeline
from fastserve.types import FloatArray

LABELLING = sorted(name for name, reads in BUILTIN.items() if not reads.causal)
"""Those that write have tests of their own."""

TEXTS = [
    "物流很快，质量不错",
    "很差，再也不买了",
    "a good movie",
    "",
    "bad",
    "so so 一般般",
    "quite long " * 30,
    "好",
] * 2


def trained(name: str) -> tuple[TextPipeline, nn.Module, NetworkSpec]:
    """A network with random weights; for what is tested here they are as good as learned ones."""
    kind = find(name)
    pipeline = TextPipeline.create(TextConfig(min_count=1), kind.encodings, preferences=kind.preferences)
    pipeline.fit(TEXTS)
    vocabulary = {encoding: pipeline.vocabulary_size(encoding) for encoding in kind.encodings}
    torch.manual_seed(0)
    network = build(name, {}, NetworkShape(vocabulary, 2)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # some start as zeros, which would hide mistakes
    return pipeline, network, NetworkSpec(name=name, shape={"vocabulary": vocabulary, "outputs": 2})


def one_by_one(pipeline: TextPipeline, network: nn.Module) -> FloatArray:
    """The plain reference: each text alone through the module."""
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            inputs = {name: RaggedTensor.from_ragged(ragged) for name, ragged in pipeline.encode([text]).items()}
            rows.append(torch.softmax(network(inputs).float(), 1).numpy())
    return np.concatenate(rows)


def saved(folder: Path, name: str) -> tuple[Bundle, FloatArray]:
    pipeline, network, spec = trained(name)
    scores = one_by_one(pipeline, network)
    parity = [
        ParityRow(text=text, scores=tuple(map(float, row))) for text, row in zip(TEXTS[:6], scores[:6], strict=True)
    ]
    bundle = save_bundle(
        folder,
        task="classification",
        labels=("bad", "good"),
        network=spec,
        pipeline=pipeline,
        weights=network.state_dict(),
        parity=parity,
        extra_files=network.files() if isinstance(network, HasFiles) else {},
    )
    return bundle, scores


@pytest.mark.parametrize("name", LABELLING)
def test_a_loaded_model_answers_as_the_trained_one(tmp_path: Path, name: str) -> None:
    _, expected = saved(tmp_path / "m", name)
    predictor = Predictor(Bundle.load((tmp_path / "m").rename(tmp_path / "moved")))
    np.testing.assert_allclose(predictor.scores(TEXTS), expected, atol=1e-5)
    assert predictor.check_parity(1e-5) == []


@pytest.mark.parametrize("name", ["bag", "mlp", "textcnn"])
def test_a_classic_network_answers_the_same_without_torch(tmp_path: Path, name: str) -> None:
    """In a process where torch cannot be imported, and as torch does it here."""
    bundle, _ = saved(tmp_path / "m", name)
    code = """
import json, sys
sys.modules["torch"] = None
from fastserve.bundle.bundle import Bundle
from fastserve.bundle.predictor import Predictor
predictor = Predictor(Bundle.load(sys.argv[1]))
print(json.dumps([predictor.runtime.name, predictor.scores(json.loads(sys.argv[2])).tolist()]))
"""
    words = [sys.executable, "-c", code, str(bundle.folder), json.dumps(TEXTS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    runtime, scores = json.loads(done.stdout)
    assert runtime == "table"
    np.testing.assert_allclose(scores, Predictor(bundle, "torch").scores(TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", LABELLING)
def test_all_weights_are_in_the_folder(tmp_path: Path, name: str) -> None:
    bundle, _ = saved(tmp_path / "m", name)
    _, network, _ = trained(name)
    again = build_network(bundle).state_dict()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=0)


def test_a_hugging_face_folder_is_needed_only_once(tmp_path: Path) -> None:
    """The bundle holds configuration, tokenizer and weights, and AutoModel reads it too."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "good", "bad", "movie", "so"])}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "hub")
    tokenizer.save(str(tmp_path / "hub" / "tokenizer.json"))
    _, expected = saved(tmp_path / "m", str(tmp_path / "hub"))
    (tmp_path / "hub").rename(tmp_path / "gone")
    predictor = Predictor(Bundle.load(tmp_path / "m"))
    np.testing.assert_allclose(predictor.scores(TEXTS), expected, atol=1e-5)
    assert transformers.AutoModel.from_pretrained(tmp_path / "m").config.hidden_size == 16
