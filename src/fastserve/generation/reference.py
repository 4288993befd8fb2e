"""The plain loop that writes: one token for every text at each step. Slow and easy to believe.

Every faster way of decoding is tested against it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastserve.generation.choosing import Chosen, choose
from fastserve.generation.sampling import Sampling
from fastserve.generation.writing import Piece, Writing, Written
from fastserve.models.attention import CachedCausal
from fastserve.models.causal import CausalNetwork

if TYPE_CHECKING:
    from fastserve.text.language_tokenizer import LanguageTokenizer


def generate(
    network: CausalNetwork,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos: Collection[int],
    tokenizer: LanguageTokenizer | None = None,
) -> list[Written]:
    """`sampling.n` texts for each prompt, in the order of the prompts; arguments and errors as of `stream`."""
    pieces: dict[tuple[int, int], list[Piece]] = defaultdict(list)
    for piece in stream(network, prompts, sampling, eos=eos, tokenizer=tokenizer):
        pieces[piece.prompt, piece.copy].append(piece)
    return [Written.of(pieces[text]) for text in sorted(pieces)]


def stream(
    network: CausalNetwork,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos: Collection[int],
    tokenizer: LanguageTokenizer | None = None,
) -> Iterator[Piece]:
    """Write on from each prompt (token ids), all texts side by side, and give every token when it is chosen.

    network: in evaluation mode; eos: ids that end a text (empty: none does); tokenizer: for `Piece.text` and for stop
    strings. A text ends at such an id, before a stop string, with `sampling.max_tokens`, or where the network's context
    is full. DataError for a prompt that is empty or leaves no room, ConfigError for a rule that cannot be kept,
    WorkError where the network's logits are not numbers.
    """
    texts = [
        Writing(ids, sampling, prompt=prompt, copy=copy, eos=eos, longest=network.longest, tokenizer=tokenizer)
        for prompt, ids in enumerate(prompts)
        for copy in range(sampling.n)
    ]
    cache = CachedCausal(network.layers, len(texts))
    new = [text.row.prompt for text in texts]
    while texts:
        chosen = _step(network, cache, new, texts)
        for text, token, logprob in zip(texts, chosen.ids.tolist(), chosen.logprobs.tolist(), strict=True):
            yield text.take(token, logprob)
        going = [place for place, text in enumerate(texts) if text.finish_reason is None]
        cache.keep(going)
        texts = [texts[place] for place in going]
        new = [text.written[-1:] for text in texts]


@torch.inference_mode()
def _step(
    network: CausalNetwork, cache: CachedCausal, new: Sequence[Sequence[int]], texts: Sequence[Writing]
) -> Chosen:
    """Read the new tokens of every text and choose the next."""
    return choose(_logits(network, cache, new), [text.row for text in texts])


def _logits(network: CausalNetwork, cache: CachedCausal, new: Sequence[Sequence[int]]) -> Tensor:
    """(B, V): what follows the last of each text's new tokens."""
    device = next(network.head.parameters()).device
    counts = [len(ids) for ids in new]
    ids = torch.tensor([token for one in new for token in one], device=device)
    hidden = network.hidden(ids, cache.extend(counts, device))
    last = torch.tensor(list(accumulate(counts)), device=device) - 1
    logits: Tensor = network.head(hidden[last])
    return logits
