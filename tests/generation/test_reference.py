"""The plain loop: equal to `transformers`, and each text as if it were alone."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from writers import Reciter, small_decoder, small_tokenizer

from fastserve.errors import ConfigError, DataError
from fastserve.generation.reference import generate, stream
from fastserve.generation.sampling import Sampling
from fastserve.generation.writing import Written
from fastserve.models import NetworkShape, build
from fastserve.models.ragged import RaggedTensor

GREEDY = Sampling(temperature=0, max_tokens=24)
PROMPTS = [[5, 17, 200], [9], list(range(20, 50)), [5, 17, 201, 3]]


@pytest.mark.parametrize("form", ["llama", "qwen3"])
def test_greedy_tokens_are_those_of_transformers(form: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network = small_decoder(form=form)
    for name, content in network.files().items():
        (tmp_path / name).write_text(content)
    save_file(network.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    found = generate(network, PROMPTS, GREEDY, eos=[])
    for prompt, written in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        expected = other.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0
        )
        assert expected[0, len(prompt) :].tolist() == written.ids
    assert len({tuple(written.ids) for written in found}) > 1


SIZES = {
    "vocab_size": 300,
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
FOLDERS = {
    "gpt2": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mistral": SIZES | {"sliding_window": 6},
    "gemma2": SIZES | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5},
    "qwen2": SIZES,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_hugging_face_folder_writes_what_transformers_writes(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, initializer_range=0.2, **FOLDERS[kind])
    other = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    other.save_pretrained(tmp_path)
    network = build(str(tmp_path), {}, NetworkShape({"tokens": 300}, 300), causal=True).eval()
    found = generate(network, PROMPTS, Sampling(temperature=0, max_tokens=16), eos=[])
    for prompt, written in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        expected = other.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert expected[0, len(prompt) :].tolist() == written.ids


def test_sampling_with_penalties_is_that_of_transformers_where_nothing_is_left_to_chance(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network = small_decoder()
    (tmp_path / "config.json").write_text(network.files()["config.json"])
    save_file(network.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([PROMPTS[2]])
    expected = other.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=20,
        repetition_penalty=1.4,
        pad_token_id=0,
    )
    rules = Sampling(temperature=1.0, top_k=1, repetition_penalty=1.4, max_tokens=20)
    assert generate(network, [PROMPTS[2]], rules, eos=[])[0].ids == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("rules", [GREEDY, Sampling(seed=7, temperature=1.2, top_p=0.9, max_tokens=12)])
def test_a_text_is_the_same_alone_and_beside_others(rules: Sampling) -> None:
    network = small_decoder()
    together = generate(network, PROMPTS, rules, eos=[1])
    for prompt, written in zip(PROMPTS, together, strict=True):
        (alone,) = generate(network, [prompt], rules, eos=[1])
        assert alone.ids == written.ids
        assert alone.logprobs == pytest.approx(written.logprobs, abs=1e-4)


def test_log_probabilities_are_those_of_the_whole_text_read_at_once() -> None:
    network = small_decoder()
    (written,) = generate(network, [PROMPTS[0]], Sampling(seed=1, top_k=5, max_tokens=15), eos=[])
    ids = torch.tensor([*PROMPTS[0], *written.ids])
    with torch.no_grad():
        logits = network({"tokens": RaggedTensor(ids, torch.tensor([0, len(ids)]))})
    expected = logits[2:-1].log_softmax(-1).gather(1, ids[3:, None])[:, 0]
    assert written.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_texts_end_at_the_end_token_the_length_or_the_context() -> None:
    network = Reciter({3: 4, 4: 5, 5: 1, 6: 6}, 8)
    ended, cut, full = generate(network, [[3], [6], [6] * 35], Sampling(temperature=0, max_tokens=9), eos=[1])
    assert (ended.ids, ended.finish_reason) == ([4, 5, 1], "stop")
    assert (cut.ids, cut.finish_reason) == ([6] * 9, "length")
    assert (full.ids, full.finish_reason) == ([6] * 5, "length")  # 40 tokens are what it reads


def test_copies_differ_and_the_same_seed_writes_them_again() -> None:
    network = small_decoder()
    rules = Sampling(seed=4, n=3, temperature=1.5, max_tokens=8)
    first = generate(network, PROMPTS[:2], rules, eos=[])
    assert [(one.prompt, one.copy) for one in first] == [(p, c) for p in range(2) for c in range(3)]
    assert len({tuple(one.ids) for one in first}) == 6
    assert generate(network, PROMPTS[:2], rules, eos=[]) == first


def spoken(text: str, rules: Sampling) -> Written:
    """A network that says `text` by heart, token by token, and then its end token."""
    tokenizer = small_tokenizer()
    ids = tokenizer.encode([text]).values.tolist()
    assert len(set(ids)) == len(ids), "each token must have one that follows it"
    chain = [0, *ids, tokenizer.eos]
    network = Reciter(dict(pairwise(chain)), tokenizer.vocabulary_size)
    (written,) = generate(network, [[0]], rules, eos=[tokenizer.eos], tokenizer=tokenizer)
    return written


def test_the_text_is_without_the_end_token() -> None:
    written = spoken("明月光", GREEDY)
    assert (written.text, written.finish_reason) == ("明月光", "stop")
    assert len(written.ids) == len(written.logprobs)


@pytest.mark.parametrize(
    ("stop", "text"), [("月", "明"), ("月光", "明"), (("光", "月"), "明"), (("x", "光，"), "明月光"), ("明", "")]
)
def test_a_stop_string_ends_the_text_before_it(stop: str | tuple[str, ...], text: str) -> None:
    written = spoken("明月光", Sampling(temperature=0, stop=stop))
    assert (written.text, written.finish_reason) == (text, "stop")


def test_a_character_that_never_becomes_whole_is_shown_as_such() -> None:
    whole = spoken("明月光", GREEDY)
    tokenizer = small_tokenizer()
    sizes = [len(tokenizer.bytes.join([token])) for token in whole.ids]
    assert sizes[0] < 3, "the first token of this text is a part of a character"
    written = spoken("明月光", Sampling(temperature=0, max_tokens=1))
    assert (written.text, written.finish_reason) == ("\N{REPLACEMENT CHARACTER}", "length")


def test_pieces_come_when_they_are_chosen() -> None:
    network = small_decoder()
    pieces = stream(network, PROMPTS, GREEDY, eos=[])
    first = [next(pieces) for _ in PROMPTS]
    assert [piece.prompt for piece in first] == [0, 1, 2, 3]
    assert all(piece.finish_reason is None for piece in first)
    assert torch.is_inference_mode_enabled() is False
    pieces.close()


@pytest.mark.parametrize(
    ("prompts", "rules", "error", "message"),
    [
        ([[1], []], GREEDY, DataError, "prompt 1 has no tokens"),
        ([[1] * 64], GREEDY, DataError, "prompt 0 has 64 tokens.*shorten it to 63"),
        ([[1]], Sampling(stop="a"), ConfigError, "stop strings need a tokenizer"),
    ],
)
def test_what_cannot_be_written_is_refused(
    prompts: list[list[int]], rules: Sampling, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generate(small_decoder(), prompts, rules, eos=[])


def test_no_prompts_no_texts() -> None:
    assert generate(small_decoder(), [], GREEDY, eos=[]) == []


def test_what_is_asked_of_a_text_is_known_without_torch() -> None:
    code = "import sys, json, fastserve.generation.writing; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) is False
