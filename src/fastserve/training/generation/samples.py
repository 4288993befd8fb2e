"""What a network writes after fixed prompts, so that a person can see it learn."""

from __future__ import annotations

from typing import cast

from torch import nn

from fastserve.evaluation.language import Sample
from fastserve.generation.reference import generate
from fastserve.generation.sampling import Sampling
from fastserve.models.causal import CausalNetwork
from fastserve.training.generation.prepare import Prepared

SAMPLE_TOKENS = 100


def samples(prepared: Prepared, network: nn.Module, *, seed: int = 0) -> list[Sample]:
    """One text after each prompt, with the same random numbers each time. network: in evaluation mode, whole."""
    pipeline, causal = prepared.pipeline, cast(CausalNetwork, network)
    most = min(SAMPLE_TOKENS, causal.longest // 2)
    ids = [pipeline.ask(prompt)[-most:].tolist() for prompt in prepared.prompts]
    if not ids:
        return []
    sampling = Sampling(max_tokens=most, temperature=0.8, top_p=0.95, seed=seed)
    written = generate(causal, ids, sampling, eos=pipeline.ends, tokenizer=pipeline.tokenizer)
    parted = "" if pipeline.kind == "text" else "\n"  # a text goes on, an answer stands for itself
    return [
        Sample(prompt + parted, one.text, one.finish_reason)
        for prompt, one in zip(prepared.prompts, written, strict=True)
    ]
