"""The decoder is what Hugging Face calls Llama or Qwen 3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from causal_samples import VOCABULARY, decoder, row_logits, rows, save

from fastserve.errors import DataError
from fastserve.models import NetworkShape, RaggedTensor
from fastserve.models.decoder import Decoder, DecoderOptions

SHAPE = NetworkShape({"tokens": VOCABULARY}, VOCABULARY)


@pytest.mark.parametrize("form", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_loads_in_transformers_and_gives_the_same_logits(tmp_path: Path, form: str, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    network = decoder(form=form, tied=tied, rope_theta=5000.0)
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(save(network, tmp_path), output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    tokens = rows()
    with torch.no_grad():
        torch.testing.assert_close(network({"tokens": tokens}), row_logits(theirs, tokens), atol=2e-5, rtol=2e-5)


def test_a_row_does_not_see_its_neighbors_nor_what_follows() -> None:
    network, tokens = decoder(), rows([9, 30, 12])
    before = network({"tokens": tokens})
    values = tokens.values.clone()
    values[20:] = (values[20:] + 1) % VOCABULARY
    after = network({"tokens": RaggedTensor(values, tokens.offsets)})
    torch.testing.assert_close(after[:20], before[:20])
    assert not torch.allclose(after[20:], before[20:])


def test_first_values_are_those_of_the_constructor() -> None:
    options = DecoderOptions(layers=2, dim=32, heads=4, tied=False)
    torch.manual_seed(3)
    built = Decoder(options, SHAPE)
    state = torch.get_rng_state()
    with torch.device("meta"):
        empty = Decoder(options, SHAPE)
    assert all(parameter.is_meta for parameter in empty.parameters())
    torch.manual_seed(3)
    values = dict(empty.first_values())
    assert torch.equal(torch.get_rng_state(), state)
    assert values.keys() == built.state_dict().keys()
    assert all(torch.equal(value, values[name]) for name, value in built.state_dict().items())


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    tokens = rows()
    gradients = []
    for checkpointed in (False, True):
        network = decoder()
        network.checkpoint_blocks = checkpointed
        network({"tokens": tokens}).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_row_longer_than_the_context_is_refused_with_its_length() -> None:
    with pytest.raises(DataError, match=r"65 tokens.*at most 64"):
        decoder()({"tokens": rows([65])})


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of key_value_heads"):
        DecoderOptions(dim=64, heads=4, key_value_heads=3)
    with pytest.raises(ValueError, match=r"multiple of 2 \* heads"):
        DecoderOptions(dim=60, heads=4)
