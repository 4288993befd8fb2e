"""Small networks of every kind, and engines run to their end."""

from __future__ import annotations

import functools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from writers import small_decoder

from fastserve.generation.engine import Engine
from fastserve.generation.orders import EngineOptions, Order, Output
from fastserve.generation.sampling import Sampling
from fastserve.models import NetworkShape, build

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {"num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 16 features, in whole registers."""
FOLDERS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "llama": SIZES,
    "qwen2": SIZES | WIDE,
    "qwen3": SIZES | {"head_dim": 16},
    "mistral": SIZES | WIDE | {"sliding_window": 6},
    "gemma": SIZES | {"head_dim": 16},
    "gemma2": SIZES | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5},
}
KINDS = ["decoder", "decoder-qwen3", *FOLDERS]


@functools.cache
def network_of(kind: str) -> nn.Module:
    """In evaluation mode, with random weights, large enough that the next token is no near tie."""
    if kind == "decoder":
        return small_decoder(context=96)
    if kind == "decoder-qwen3":
        return small_decoder(context=96, form="qwen3")
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, initializer_range=0.2, **FOLDERS[kind])
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(folder)
        return build(str(Path(folder)), {}, NetworkShape({"tokens": 300}, 300), causal=True).eval()


def run(
    engine: Engine, orders: Sequence[Order], *, each_step: Callable[[Engine, int], None] = lambda engine, step: None
) -> dict[tuple[str, int], list[Output]]:
    """All outputs of each text; `each_step` is called after every step, with its number."""
    for order in orders:
        engine.add(order)
    found: dict[tuple[str, int], list[Output]] = defaultdict(list)
    step = 0
    while engine.has_work:
        for output in engine.step():
            found[output.id, output.copy].append(output)
        engine.scheduler.cache.check()
        each_step(engine, step)
        step += 1
    return found


def ids(outputs: Sequence[Output]) -> list[int]:
    return [output.token for output in outputs]


def engine_of(kind: str = "decoder", *, eos: Sequence[int] = (), **options: Any) -> Engine:
    return Engine(
        network_of(kind),
        None,
        EngineOptions(**{"precision": "float32", "profile_seconds": 0, "speculation": 0, **options}),
        eos=eos,
    )


def greedy(tokens: int = 20) -> Sampling:
    return Sampling(temperature=0, max_tokens=tokens)
