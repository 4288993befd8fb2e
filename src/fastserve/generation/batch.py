"""Many prompts at once through an engine, for whoever wants the texts and not the tokens: what `reference.generate`
gives, faster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from fastserve.errors import WorkError
from fastserve.generation.engine import Engine
from fastserve.generation.orders import EngineOptions, Order, Output
from fastserve.generation.sampling import Sampling
from fastserve.generation.writing import Writing, Written
from fastserve.models.causal import CausalNetwork

if TYPE_CHECKING:
    from fastserve.text.language_tokenizer import LanguageTokenizer

OPTIONS = EngineOptions(precision="float32", policy="fcfs", max_waiting_tokens=1 << 40, profile_seconds=0)


def generate(
    network: CausalNetwork,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos: Collection[int],
    tokenizer: LanguageTokenizer | None = None,
) -> list[Written]:
    """Arguments, results and errors of `reference.generate`; in float32, so that the texts are the same, too."""
    for place, prompt in enumerate(prompts):  # a faulty one is named by its place, before anything is written
        Writing(prompt, sampling, prompt=place, eos=eos, longest=network.longest, tokenizer=tokenizer)
    if not prompts:
        return []
    engine = Engine(network, tokenizer, OPTIONS, eos=eos)
    for place, prompt in enumerate(prompts):
        engine.add(Order(str(place), prompt, sampling))
    found: dict[tuple[int, int], list[Output]] = defaultdict(list)
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise WorkError(output.error)
            found[int(output.id), output.copy].append(output)
    return [_written(place, copy, found[place, copy]) for place, copy in sorted(found)]


def _written(prompt: int, copy: int, outputs: Sequence[Output]) -> Written:
    reason = outputs[-1].finish_reason
    if reason is None:
        raise ValueError(f"text {copy} of prompt {prompt} has not ended yet")
    return Written(
        prompt,
        copy,
        [one.token for one in outputs],
        [one.logprob for one in outputs],
        "".join(one.text for one in outputs),
        reason,
    )
