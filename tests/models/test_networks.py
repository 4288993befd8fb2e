"""What every network must keep, whatever it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import OUTPUTS, build_fitted, logits, random_texts, tensors
from torch import nn

from fastserve.models.network import HasStatistics
from fastserve.types import Ragged

NETWORKS: dict[str, dict[str, object]] = {
    "bag": {},
    "bag hidden": {"dim": 8, "dropout": 0.2},
    "linear": {},
    "wide-deep": {"members": 2, "dim": 12, "filters": 6},
    "mlp": {"dim": 16, "hidden": [12, 10]},
    "textcnn": {"dim": 16, "filters": 8},
    "lstm": {"dim": 12, "hidden": 8},
    "lstm deep": {"dim": 8, "hidden": 6, "layers": 2},
    "transformer": {"dim": 16, "layers": 2, "heads": 2, "feedforward": 32},
    "transformer cls": {"dim": 16, "layers": 2, "heads": 2, "feedforward": 32, "pooling": "cls"},
}


def make(case: str, seed: int = 0) -> nn.Module:
    return build_fitted(case.split()[0], NETWORKS[case], seed)


@pytest.fixture(params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    return make(request.param)


def test_logits_are_one_row_a_text_and_one_column_a_label(network: nn.Module) -> None:
    found = logits(network, random_texts(np.random.default_rng(0), [5, 1, 12]))
    assert found.shape == (3, OUTPUTS)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("case", sorted(NETWORKS))
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), min_size=2, max_size=8), seed=st.integers(0, 1000))
def test_a_row_does_not_depend_on_its_neighbours(case: str, lengths: list[int], seed: int) -> None:
    network = make(case)
    encoded = random_texts(np.random.default_rng(seed), lengths)
    together = logits(network, encoded)
    for row in range(len(lengths)):
        alone = logits(network, {name: ragged.take(np.array([row])) for name, ragged in encoded.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_an_empty_text_has_finite_logits(network: nn.Module) -> None:
    for lengths in ([0], [0, 0], [0, 7]):
        assert torch.isfinite(logits(network, random_texts(np.random.default_rng(0), lengths))).all()


def test_the_order_of_rows_is_kept(network: nn.Module) -> None:
    encoded = random_texts(np.random.default_rng(1), [3, 9, 1, 4])
    order = np.array([2, 0, 3, 1])
    shuffled = {name: ragged.take(order) for name, ragged in encoded.items()}
    torch.testing.assert_close(logits(network, shuffled), logits(network, encoded)[order], rtol=1e-5, atol=1e-5)


def test_the_gradient_flows_to_every_parameter(network: nn.Module) -> None:
    network.train()
    encoded = random_texts(np.random.default_rng(2), [40] * 8)
    loss = nn.functional.cross_entropy(network(tensors(encoded)), torch.arange(8) % OUTPUTS)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_learns_which_word_decides(network: nn.Module) -> None:
    generator = np.random.default_rng(3)
    encoded = random_texts(generator, [6] * 60)
    targets = np.arange(60) % OUTPUTS
    encoded["tokens"].values[::6] = 10 + targets
    encoded["ngrams"] = Ragged(encoded["ngrams"].values.copy(), encoded["ngrams"].offsets, encoded["ngrams"].weights)
    encoded["ngrams"].values[::12] = 10 + targets
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(tensors(encoded)), torch.from_numpy(targets)).backward()
        optimizer.step()
    assert (logits(network, encoded).argmax(1).numpy() == targets).mean() > 0.95


@pytest.mark.parametrize("case", sorted(NETWORKS))
def test_the_state_dict_is_the_whole_network(case: str) -> None:
    first, second = make(case, seed=1), make(case, seed=2)
    encoded = random_texts(np.random.default_rng(4), [5, 8])
    if isinstance(first, HasStatistics):
        first.fit_statistics([(encoded, np.array([0, 1]))])
    second.load_state_dict(first.state_dict())
    assert torch.equal(logits(first, encoded), logits(second, encoded))


@pytest.mark.parametrize("case", sorted(NETWORKS))
def test_sparse_gradients_equal_the_dense_ones(case: str) -> None:
    network = make(case).eval()
    if not hasattr(network, "sparse_parameters"):
        pytest.skip("has no big table")
    encoded = random_texts(np.random.default_rng(5), [9, 4, 0, 7])
    gradients = []
    for sparse in (False, True):
        network.sparse_gradients = sparse  # type: ignore[assignment]
        network.zero_grad()
        network(tensors(encoded)).square().sum().backward()
        gradients.append([network.get_parameter(name).grad for name in network.sparse_parameters()])
    groups = network.parameter_groups() if hasattr(network, "parameter_groups") else []
    may_repeat = {
        name for group in groups if group.optimizer == "sgd" or group.accumulate > 1 for name in group.parameters
    }
    for name, dense, rows in zip(network.sparse_parameters(), *gradients, strict=True):
        assert rows.is_sparse
        assert name in may_repeat or len(set(rows._indices()[0].tolist())) == rows._nnz()
        torch.testing.assert_close(rows.to_dense(), dense)
