"""Table look-ups against the torch modules that they stand for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import OUTPUTS, SHAPE, VOCABULARY, build_fitted, logits, random_texts
from torch import nn

from fastserve.bundle.runtimes.table import TableRuntime
from fastserve.errors import BundleError
from fastserve.models import NetworkShape
from fastserve.models.network import HasStatistics
from fastserve.types import Encoded, Ragged

CASES: dict[str, dict[str, object]] = {
    "bag": {},
    "bag hidden": {"dim": 8},
    "linear": {"entropy_share": 0.3},
    "wide-deep": {"members": 2, "dim": 12, "filters": 6, "deep_share": 0.7},
    "mlp": {"dim": 16, "hidden": [12, 10]},
    "mlp linear": {"dim": 16, "hidden": []},
    "textcnn": {"dim": 16, "filters": 8},
    "textcnn uneven": {"dim": 8, "filters": 5, "widths": [3, 1, 5, 3]},
    "textcnn unigram": {"dim": 8, "filters": 5, "widths": [1]},
}


def make(case: str, shape: NetworkShape = SHAPE) -> tuple[nn.Module, TableRuntime]:
    name = case.split()[0]
    network = build_fitted(name, CASES[case], shape=shape)
    if isinstance(network, HasStatistics):  # now with ids that have no row
        network.fit_statistics([(random_texts(np.random.default_rng(9), [4, 9, 30]), np.array([0, 1, 2]))])
        nn.init.normal_(network.get_parameter("table.weight"), std=0.3)
    if name == "linear":
        nn.init.normal_(network.get_parameter("entropy_weight"), std=0.3)
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    return network, TableRuntime(weights, name, CASES[case], shape.outputs)


@pytest.mark.parametrize("case", sorted(CASES))
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=8), seed=st.integers(0, 1000))
def test_logits_equal_those_of_torch(case: str, lengths: list[int], seed: int) -> None:
    network, runtime = make(case)
    encoded = random_texts(np.random.default_rng(seed), lengths) if lengths else nothing()
    found = runtime.logits(encoded)
    assert found.dtype == np.float32
    assert found.shape == (len(lengths), OUTPUTS)
    if lengths:
        np.testing.assert_allclose(found, logits(network, encoded).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["bag", "bag hidden", "linear", "wide-deep"])
def test_two_exclusive_labels_equal_those_of_torch(case: str) -> None:
    network, runtime = make(case, NetworkShape(VOCABULARY, 2, exclusive=True))
    encoded = random_texts(np.random.default_rng(3), [7, 0, 20])
    found = runtime.logits(encoded)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, logits(network, encoded).numpy(), rtol=1e-5, atol=1e-5)


def nothing() -> Encoded:
    return {"tokens": Ragged.from_rows([]), "ngrams": Ragged.from_rows([])}


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_row_does_not_depend_on_its_neighbours(case: str) -> None:
    _, runtime = make(case)
    encoded = random_texts(np.random.default_rng(1), [5, 0, 700, 1, 3, 900, 2])
    together = runtime.logits(encoded)
    for row in range(7):
        alone = runtime.logits({name: ragged.take(np.array([row])) for name, ragged in encoded.items()})
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_the_texts_are_not_changed() -> None:
    encoded = random_texts(np.random.default_rng(2), [5, 3])
    before = {name: (ragged.values.copy(), ragged.offsets.copy()) for name, ragged in encoded.items()}
    for case in CASES:
        make(case)[1].logits(encoded)
    for name, (values, offsets) in before.items():
        np.testing.assert_array_equal(encoded[name].values, values)
        np.testing.assert_array_equal(encoded[name].offsets, offsets)


def test_weights_in_half_precision_are_taken() -> None:
    network, _ = make("textcnn")
    halves = {key: value.numpy().astype(np.float16) for key, value in network.state_dict().items()}
    encoded = random_texts(np.random.default_rng(3), [5, 3])
    found = TableRuntime(halves, "textcnn", {}, OUTPUTS).logits(encoded)
    np.testing.assert_allclose(found, logits(network, encoded).numpy(), atol=0.01)


def test_what_it_cannot_run_is_refused() -> None:
    assert TableRuntime.supports("textcnn", {})
    assert not TableRuntime.supports("lstm", {})
    with pytest.raises(BundleError, match="cannot run 'lstm': available: bag, linear, mlp, textcnn, wide-deep"):
        TableRuntime({}, "lstm", {}, 2)
    with pytest.raises(BundleError, match="lack 'embedding'"):
        TableRuntime({}, "mlp", {}, 2)


def test_no_torch_is_imported() -> None:
    code = "import sys, fastserve.bundle.runtimes.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
