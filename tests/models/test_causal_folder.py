"""Causal folders of Hugging Face: our packed logits are those that transformers gives each row alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from causal_samples import VOCABULARY, row_logits, rows, save
from torch import nn

from fastserve.errors import ConfigError, DataError, NotFoundError
from fastserve.models import NetworkShape, build, find
from fastserve.models.attention import CachedCausal, PackedCausal
from fastserve.models.causal_folder import CausalFolder
from fastserve.models.pretrained import PretrainedFolder

transformers = pytest.importorskip("transformers")

SHAPE = NetworkShape({"tokens": VOCABULARY}, VOCABULARY)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = SIZES | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama-tied": ("llama", SIZES | {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen2": ("qwen2", SIZES),
    "qwen2-window": ("qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", SIZES | {"head_dim": 16}),
    "mistral": ("mistral", SIZES | {"sliding_window": 6}),
    "gemma": ("gemma", SIZES | {"head_dim": 16}),
    "gemma2": ("gemma2", GEMMA | {"final_logit_softcapping": 1.5, "attn_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
    "granite": ("granite", SIZES | {"logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "gpt2": (
        "gpt2",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.1},
    ),
}


def model_of(name: str) -> Any:
    """Larger weights than those drawn by default: differences show."""
    kind, sizes = CONFIGURATIONS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, initializer_range=0.2, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def logits(network: nn.Module) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        found: torch.Tensor = network({"tokens": rows()})
    return found


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_folder_gives_what_transformers_gives_and_is_saved_as_it_came(name: str, tmp_path: Path) -> None:
    theirs = model_of(name)
    theirs.save_pretrained(tmp_path / "from")
    expected = row_logits(theirs, rows())
    network = build(str(tmp_path / "from"), {}, SHAPE, causal=True)
    torch.testing.assert_close(logits(network), expected, atol=2e-5, rtol=2e-5)
    saved = save(network, tmp_path / "to")
    again = transformers.AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager").eval()
    torch.testing.assert_close(row_logits(again, rows()), expected, atol=2e-5, rtol=2e-5)
    rebuilt = build("a/folder/that/is/gone", {}, SHAPE, saved_in=saved, causal=True)
    rebuilt.load_state_dict(network.state_dict())
    torch.testing.assert_close(logits(rebuilt), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["gemma2", "mistral", "gpt2"])
def test_cached_logits_are_those_of_whole_rows(name: str, tmp_path: Path) -> None:
    model_of(name).save_pretrained(tmp_path)
    network: Any = build(str(tmp_path), {}, SHAPE, causal=True).eval()
    tokens = rows([11, 11])
    ids = tokens.values.long()
    with torch.no_grad():
        whole = network.hidden(ids, PackedCausal(tokens.offsets)).view(2, 11, -1)
        cache = CachedCausal(network.layers, 2)
        parts = [
            network.hidden(ids.view(2, 11)[:, start:stop].reshape(-1), cache.extend([stop - start] * 2)).view(
                2, stop - start, -1
            )
            for start, stop in ((0, 4), (4, 5), (5, 6), (6, 11))
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=2e-5)


def test_checkpointed_blocks_give_the_same_gradients(tmp_path: Path) -> None:
    model_of("llama").save_pretrained(tmp_path)
    found = []
    for checkpointed in (False, True):
        network = build(str(tmp_path), {}, SHAPE, causal=True).train()
        network.checkpoint_blocks = checkpointed  # type: ignore[assignment]
        assert network.checkpoint_blocks == checkpointed
        network({"tokens": rows()}).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_tokens_that_were_added_get_vectors(tmp_path: Path) -> None:
    model_of("llama").save_pretrained(tmp_path)
    network: Any = build(str(tmp_path), {}, NetworkShape({"tokens": VOCABULARY + 3}, VOCABULARY + 3), causal=True)
    assert network({"tokens": rows()}).shape[1] == VOCABULARY + 3
    assert json.loads(network.files()["config.json"])["vocab_size"] == VOCABULARY + 3


def test_a_context_beyond_the_positions_and_a_longer_row_are_refused(tmp_path: Path) -> None:
    model_of("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="65 tokens, but the positions reach to 64"):
        build(str(tmp_path), {"context": 65}, SHAPE, causal=True)
    network = build(str(tmp_path), {"context": 8}, SHAPE, causal=True)
    with pytest.raises(DataError, match=r"9 tokens.*at most 8"):
        network({"tokens": rows([9])})


def test_a_model_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_of("gpt2").save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.forward

    def otherwise(*given: Any, **named: Any) -> Any:
        found = theirs(*given, **named)
        found.logits = 2 * found.logits
        return found

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", otherwise)
    with pytest.raises(ConfigError, match="gpt2"):
        build(str(tmp_path), {}, SHAPE, causal=True)


def test_where_either_sort_will_do_a_folder_is_what_it_was(tmp_path: Path) -> None:
    model_of("gpt2").save_pretrained(tmp_path)
    assert isinstance(find(str(tmp_path), causal=None), CausalFolder)
    assert isinstance(find(str(tmp_path)), PretrainedFolder)


def test_the_sort_of_network_that_a_task_needs_is_said() -> None:
    with pytest.raises(ConfigError, match=r"'textcnn' labels text.*decoder-15m"):
        find("textcnn", causal=True)
    with pytest.raises(ConfigError, match=r"'decoder-15m' writes text.*textcnn"):
        find("decoder-15m")
    with pytest.raises(NotFoundError):
        find("decoder-16m", causal=True)
