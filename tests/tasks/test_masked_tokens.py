"""What is hidden from an encoder, and how well it says it."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastserve.models import NetworkShape
from fastserve.models.encoder import TransformerEncoder
from fastserve.models.masked import MaskedEncoder, build_masked
from fastserve.models.masking import MASK, at_random, by_content, chosen
from fastserve.models.network import HasSparseGradients, build
from fastserve.models.ragged import RaggedTensor
from fastserve.tasks.masked import Masked

VOCABULARY = 50
SHAPE = NetworkShape({"tokens": VOCABULARY}, VOCABULARY)
OPTIONS = {"dim": 16, "layers": 2, "heads": 2, "feedforward": 24, "dropout": 0.0}


def texts(*lengths: int, seed: int = 0) -> RaggedTensor:
    draw = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    return RaggedTensor(torch.randint(2, VOCABULARY, (int(offsets[-1]),), generator=draw).int(), offsets)


def network(**options: object) -> MaskedEncoder:
    torch.manual_seed(0)
    return build_masked("transformer", OPTIONS | options, SHAPE).eval()


@pytest.mark.parametrize("how", [at_random, by_content])
def test_of_each_row_its_share_is_hidden_and_the_rest_stays(how: object) -> None:
    tokens = texts(40, 0, 1, 7, 200)
    hidden = at_random(tokens, VOCABULARY) if how is at_random else by_content(tokens, VOCABULARY)
    assert torch.bincount(hidden.rows, minlength=5).tolist() == [6, 0, 1, 1, 30]
    assert torch.bincount(hidden.rows, minlength=5).tolist() == chosen(tokens.lengths).tolist()
    assert len(set(hidden.places.tolist())) == len(hidden.places)
    assert torch.equal(hidden.targets, tokens.values[hidden.places].long())
    assert torch.equal(hidden.rows, tokens.rows[hidden.places])
    others = torch.ones(len(tokens.values), dtype=torch.bool).index_fill(0, hidden.places, False)
    assert torch.equal(hidden.tokens.values[others], tokens.values[others].long())


@pytest.mark.parametrize("how", [at_random, by_content])
def test_hidden_tokens_become_the_mask_another_one_or_stay(how: object) -> None:
    torch.manual_seed(0)
    tokens = texts(*[100] * 400)
    hidden = at_random(tokens, VOCABULARY) if how is at_random else by_content(tokens, VOCABULARY)
    seen = hidden.tokens.values[hidden.places]
    masked, same = (seen == MASK).float().mean().item(), (seen == hidden.targets).float().mean().item()
    assert masked == pytest.approx(0.8 + 0.1 / VOCABULARY, abs=0.02)
    assert same == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.02)
    places = torch.bincount(hidden.places % 100, minlength=100)
    assert places.min() > 30, "every place of a row is as likely"
    assert places.max() < 95


def test_an_evaluation_hides_the_same_wherever_a_row_stands() -> None:
    tokens = texts(30, 12, 30)
    whole = by_content(tokens, VOCABULARY)
    for row in range(3):
        start, stop = tokens.offsets[row : row + 2].tolist()
        alone = by_content(RaggedTensor(tokens.values[start:stop], torch.tensor([0, stop - start])), VOCABULARY)
        assert torch.equal(alone.tokens.values, whole.tokens.values[start:stop])
    changed = tokens.values.clone()
    changed[0] = 2 if changed[0] != 2 else 3
    other = by_content(tokens.with_values(changed), VOCABULARY)
    assert not torch.equal(other.places[other.rows == 0], whole.places[whole.rows == 0])


def test_training_hides_other_places_each_time_and_the_same_from_the_same_state() -> None:
    tokens = texts(100)
    torch.manual_seed(1)
    one, two = at_random(tokens, VOCABULARY), at_random(tokens, VOCABULARY)
    torch.manual_seed(1)
    again = at_random(tokens, VOCABULARY)
    assert torch.equal(one.tokens.values, again.tokens.values)
    assert not torch.equal(one.tokens.values, two.tokens.values)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_loss_and_its_gradients_are_those_of_all_logits(pooling: str) -> None:
    encoder, task, tokens = network(pooling=pooling), Masked(VOCABULARY), texts(30, 0, 9, 2)
    torch.manual_seed(3)
    loss = task.loss(encoder, {"tokens": tokens}, torch.zeros(4))
    torch.manual_seed(3)
    hidden = at_random(tokens, VOCABULARY)
    plain = functional.cross_entropy(encoder({"tokens": hidden.tokens})[hidden.places], hidden.targets)
    torch.testing.assert_close(loss, plain)
    parameters = list(encoder.parameters())
    for found, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_scores_are_sums_over_hidden_tokens_and_figures_are_made_of_them() -> None:
    encoder, task, tokens = network(), Masked(VOCABULARY), texts(30, 0, 9)
    with torch.inference_mode():
        scores = task.score(encoder, {"tokens": tokens}).numpy()
        hidden = by_content(tokens, VOCABULARY)
        logits = encoder({"tokens": hidden.tokens})[hidden.places]
    losses = functional.cross_entropy(logits, hidden.targets, reduction="none").numpy()
    assert scores[:, 2].tolist() == [4, 0, 1]
    assert scores[0, 0] == pytest.approx(losses[:4].sum(), rel=1e-5)
    figures = task.quick_metrics(scores, np.zeros(3))
    assert figures["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(float((logits.argmax(1) == hidden.targets).float().mean()))


def test_rows_without_tokens_have_a_loss_of_nothing() -> None:
    loss = Masked(VOCABULARY).loss(network(), {"tokens": texts(0, 0)}, torch.zeros(2))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0


def test_all_but_the_head_has_the_names_and_shapes_of_the_network_that_labels() -> None:
    masked, labels = network(), cast(TransformerEncoder, build("transformer", OPTIONS, SHAPE))
    shapes = {name: value.shape for name, value in masked.state_dict().items()}
    theirs = {name: value.shape for name, value in labels.state_dict().items() if not name.startswith("output.")}
    assert theirs.items() <= shapes.items()
    assert shapes.keys() - theirs.keys() == {"transform.weight", "transform.bias", "bias"} | {
        f"transform_norm.{name}" for name in ("weight", "bias")
    }
    assert not isinstance(masked, HasSparseGradients), "the head reads the whole table"


def test_first_values_are_those_of_the_constructor() -> None:
    built = network()
    with torch.device("meta"):
        empty = build_masked("transformer", OPTIONS, SHAPE)
    torch.manual_seed(0)
    values = dict(empty.first_values())
    assert values.keys() == built.state_dict().keys()
    assert all(torch.equal(value, values[name]) for name, value in built.state_dict().items())
