"""What the tests of this folder share. Small tensors are computed fastest by one thread."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import export_samples
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def measured_speed() -> Iterator[None]:
    """Every form is taken for twice as fast: what a busy machine measures of tiny networks is chance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("fastserve.compression.export"), "times_as_fast", lambda *_: 2.0)
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a BERT of 16 numbers a token and a tokenizer of a few words."""
    transformers = pytest.importorskip("transformers", reason="needs the extra 'pretrained'")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", *export_samples.GOOD, *export_samples.BAD, *export_samples.PLAIN]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
