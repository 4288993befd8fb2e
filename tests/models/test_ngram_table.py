"""The table over hashed n-grams against its definition."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastserve.models import NetworkShape, RaggedTensor, build, resolve
from fastserve.models.network import HasOwnLoss, HasStatistics
from fastserve.models.ngram_table import NgramTable, squared_hinge
from fastserve.tasks.classification import Classification
from fastserve.types import Ragged

TEXTS = [{2: 1, 3: 2, 4: 1}, {2: 3, 5: 1}, {2: 1, 3: 1, 9: 1}, {}]


def ragged(texts: list[dict[int, int]]) -> Ragged:
    rows = Ragged.from_rows([sorted(text) for text in texts])
    counts = [text[key] for text in texts for key in sorted(text)]
    return Ragged(rows.values, rows.offsets, np.array(counts, np.float32))


@pytest.fixture
def table() -> NgramTable:
    found = NgramTable(12, 2)
    found.fit_statistics([({"ngrams": ragged(TEXTS[:2])}, None), ({"ngrams": ragged(TEXTS[2:])}, None)])
    return found


def test_only_what_two_texts_share_is_kept(table: NgramTable) -> None:
    assert table.kept.tolist() == [2, 3]
    assert table.weight.shape == (2, 2)
    assert table.idf.tolist() == pytest.approx([math.log(5 / 4) + 1, math.log(5 / 3) + 1])


def test_characters_and_words_each_have_half_of_a_text(table: NgramTable) -> None:
    valued = table.valued(RaggedTensor.from_ragged(ragged([{2: 1, 3: 2, 7: 4}, {}, {3: 5}])))
    assert valued.values.tolist() == [0, 1, 1]
    assert valued.offsets.tolist() == [0, 2, 2, 3]
    assert valued.weights is not None
    assert valued.weights.tolist() == pytest.approx([math.sqrt(0.5)] * 3)


def test_values_grow_with_count_and_rarity() -> None:
    table = NgramTable(12, 2)
    table.fit_statistics([({"ngrams": ragged([{2: 1, 4: 1}, {2: 1, 4: 1}, {2: 1}, {}])}, None)])
    valued = table.valued(RaggedTensor.from_ragged(ragged([{2: 3, 4: 1}])))
    plain = np.array([(1 + math.log(3)) * (math.log(5 / 4) + 1), math.log(5 / 3) + 1])
    assert valued.weights is not None
    np.testing.assert_allclose(valued.weights.numpy(), plain / np.linalg.norm(plain) / math.sqrt(2), rtol=1e-6)


def test_a_single_text_keeps_its_ngrams() -> None:
    table = NgramTable(12, 2)
    table.fit_statistics([({"ngrams": ragged([{2: 1, 4: 1}])}, None)])
    assert table.kept.tolist() == [2, 4]


def test_texts_that_are_the_same_are_learned_without_overshooting() -> None:
    same = ragged([{2: 1, 3: 1, 5: 2}] * 32)
    network = build("bag", {}, NetworkShape({"ngrams": 12}, 2))
    network.fit_statistics([({"ngrams": same}, None)])
    assert network.table.likeness == pytest.approx(32, rel=1e-3)
    targets = torch.tensor([0, 1, 1, 1] * 8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        loss = network.loss({"ngrams": RaggedTensor.from_ragged(same)}, targets, Classification(["a", "b"]))
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(2 * (1 - (1 / 2) ** 2), abs=0.05)  # the best that three quarters allow


def test_what_is_computed_once_gives_the_same(table: NgramTable) -> None:
    torch.nn.init.normal_(table.weight)
    encoded = {"ngrams": ragged([{2: 1, 3: 2, 9: 1}, {}, {4: 1, 2: 3}]), "tokens": ragged([{1: 1}, {}, {}])}
    ready = table.precompute(encoded)
    assert "ngrams" not in ready
    assert ready["tokens"] is encoded["tokens"]
    once = table({name: RaggedTensor.from_ragged(part) for name, part in ready.items()})
    torch.testing.assert_close(once, table({"ngrams": RaggedTensor.from_ragged(encoded["ngrams"])}))


def test_loading_takes_over_the_rows_and_keeps_the_parameter(table: NgramTable) -> None:
    torch.nn.init.normal_(table.weight)
    other = NgramTable(12, 2)
    parameter = other.weight
    other.load_state_dict(table.state_dict())
    assert other.weight is parameter
    inputs = {"ngrams": RaggedTensor.from_ragged(ragged([{2: 1, 3: 2, 9: 1}]))}
    assert torch.equal(other(inputs), table(inputs))


def task(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{"multi_label": False, "label_smoothing": 0.0, "class_weights": None, **changes})


def test_the_hinge_is_the_mean_and_its_gradient_that_of_the_sum() -> None:
    scores = torch.tensor([[2.0, 0.5], [0.0, -3.0]], requires_grad=True)
    loss = squared_hinge(scores, torch.tensor([0, 1]), task())
    assert loss.item() == pytest.approx((1.5**2 + 1 + 4**2) / 2)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.0, 3.0], [2.0, -8.0]]


def test_the_hinge_of_several_labels_equals_that_of_one() -> None:
    scores = torch.randn(5, 3)
    targets = torch.tensor([0, 2, 1, 1, 0])
    one = squared_hinge(scores, targets, task())
    several = squared_hinge(scores, torch.nn.functional.one_hot(targets, 3), task(multi_label=True))
    torch.testing.assert_close(one, several)


def test_class_weights_and_smoothing_change_the_hinge() -> None:
    scores = torch.tensor([[0.0, -1.0], [-1.0, 0.0]])
    targets = torch.tensor([0, 1])
    assert squared_hinge(scores, targets, task()).item() == 1.0
    assert squared_hinge(scores, targets, task(class_weights=[3.0, 1.0])).item() == 2.0
    assert squared_hinge(scores, targets, task(label_smoothing=0.5)).item() == 0.25
    one_hot = torch.eye(2)
    assert squared_hinge(scores, one_hot, task(class_weights=[3.0, 1.0], multi_label=True)).item() == 2.0


def trained(name: str, options: dict[str, object], job: Classification, *, exclusive: bool) -> torch.nn.Module:
    """A network after a few steps on random texts."""
    torch.manual_seed(0)
    network = build(name, options, NetworkShape({"ngrams": 12, "tokens": 9}, 2, exclusive=exclusive)).eval()
    assert isinstance(network, HasStatistics)
    assert isinstance(network, HasOwnLoss)
    generator = np.random.default_rng(5)
    rows = [dict.fromkeys(generator.choice(12, 5, replace=False).tolist(), 1) for _ in range(40)]
    encoded = {"ngrams": ragged(rows), "tokens": Ragged.from_rows([[2, 3]] * 40)}
    network.fit_statistics([(encoded, None)])
    inputs = {key: RaggedTensor.from_ragged(part) for key, part in encoded.items()}
    targets = torch.from_numpy(generator.integers(0, 2, 40))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    for _ in range(10):
        optimizer.zero_grad()
        network.loss(inputs, targets, job).backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("weights", [None, [3.0, 0.5]])
@pytest.mark.parametrize("name", ["bag", "wide-deep"])
def test_one_column_learns_what_two_labels_columns_would(name: str, weights: list[float] | None) -> None:
    job = Classification(["a", "b"], label_smoothing=0.1, class_weights=weights)
    options = {} if name == "bag" else {"dropout": 0, "embedding_dropout": 0, "word_dropout": 0, "dim": 4}
    one, two = (trained(name, options, job, exclusive=exclusive) for exclusive in (True, False))
    weight = one.get_parameter("table.weight")
    assert weight.shape == (12, 1)
    assert weight.any()
    torch.testing.assert_close(torch.cat([-weight, weight], 1), two.get_parameter("table.weight"))
    inputs = {"ngrams": ragged(TEXTS), "tokens": Ragged.from_rows([[2]] * 4)}
    tensors = {key: RaggedTensor.from_ragged(part) for key, part in inputs.items()}
    torch.testing.assert_close(one(tensors), two(tensors))


def test_one_column_of_the_entropy_model_means_both_labels() -> None:
    network = trained("linear", {"entropy_share": 1.0}, Classification(["a", "b"]), exclusive=True)
    assert network.get_parameter("entropy_weight").shape == (12, 1)
    logits = network({"ngrams": RaggedTensor.from_ragged(ragged(TEXTS))})
    assert logits.shape == (4, 2)
    assert logits.any()
    torch.testing.assert_close(logits[:, 0], -logits[:, 1])


def test_the_value_of_the_hinge_counts_both_labels_of_one_column() -> None:
    scores, targets = torch.tensor([[0.5], [3.0]]), torch.tensor([1, 0])
    both = squared_hinge(torch.cat([-scores, scores], 1), targets, task())
    assert squared_hinge(scores, targets, task()).item() == both.item() == pytest.approx((2 * 0.5**2 + 2 * 4**2) / 2)
    several = squared_hinge(scores, 1 - targets[:, None], task(multi_label=True))  # one label that a row may have
    assert several.item() == pytest.approx(1.5**2 / 2)


@pytest.mark.parametrize("name", ["bag", "linear", "wide-deep"])
def test_every_parameter_is_in_one_group(name: str) -> None:
    network = build(name, {}, NetworkShape({"ngrams": 12, "tokens": 30}, 2))
    named = [parameter for group in network.parameter_groups() for parameter in group.parameters]  # type: ignore[operator]
    assert len(named) == len(set(named))
    assert set(named) <= {key for key, _ in network.named_parameters()}
    assert set(network.sparse_parameters()) <= {key for key, _ in network.named_parameters()}  # type: ignore[operator]


def test_auto_depends_on_the_number_of_rows() -> None:
    assert [resolve("auto", rows) for rows in (100, 19_999, 20_000, 10**9)] == ["wide-deep"] * 2 + ["linear"] * 2
    assert resolve("bag", 10**9) == "bag"
