"""Many prompts through the engine: the texts of the plain loop."""

from __future__ import annotations

import pytest
from engines import network_of
from writers import small_decoder, small_tokenizer

from fastserve.errors import ConfigError, DataError
from fastserve.generation import batch, reference
from fastserve.generation.sampling import Sampling

PROMPTS = [[5, 17, 200], list(range(20, 60)), [9]] * 3


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0, max_tokens=9), Sampling(seed=3, n=2, top_k=40, max_tokens=9, stop="a")]
)
def test_texts_are_those_of_the_plain_loop(sampling: Sampling) -> None:
    tokenizer = small_tokenizer()
    network = small_decoder(max(tokenizer.vocabulary_size, 300))
    one, other = (
        module.generate(network, PROMPTS, sampling, eos=[4], tokenizer=tokenizer) for module in (batch, reference)
    )
    assert [text.logprobs for text in one] == [pytest.approx(text.logprobs, abs=1e-4) for text in other]
    assert [(text.prompt, text.copy, text.ids, text.text, text.finish_reason) for text in one] == [
        (text.prompt, text.copy, text.ids, text.text, text.finish_reason) for text in other
    ]


def test_faulty_prompts_are_named() -> None:
    network = network_of("decoder")
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        batch.generate(network, [[1], []], Sampling(), eos=[])
    with pytest.raises(ConfigError, match="logit_bias"):
        batch.generate(network, [[1]], Sampling(logit_bias={999: 1}), eos=[])
    assert batch.generate(network, [], Sampling(), eos=[]) == []
