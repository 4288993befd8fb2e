"""The door: names, options, and users' own modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_samples import SHAPE, logits, random_texts

from fastserve.errors import ConfigError, NotFoundError
from fastserve.models import build, find
from fastserve.models.builtin import BUILTIN
from fastserve.plugins import NETWORKS

TEXTS = random_texts(np.random.default_rng(0), [4, 2])


@pytest.mark.parametrize("name", NETWORKS.names())
def test_every_network_tells_what_it_needs_before_it_is_built(name: str) -> None:
    kind = find(name, causal=None)
    assert find(name, causal=BUILTIN[name].causal) is kind
    assert set(kind.encodings) <= {"tokens", "ngrams"}
    assert kind.preferences.vocabulary_size > 0
    for rows in (100, 100_000):
        recipe = kind.recipe(rows, 5)
        assert recipe.epochs >= 1
        assert recipe.learning_rate > 0
    assert kind.Options() == kind.Options.model_validate(kind.Options().model_dump(mode="json"))


def test_few_rows_are_met_in_small_batches_and_more_epochs() -> None:
    few, some, many = (find("textcnn").recipe(rows, 2) for rows in (300, 5_000, 100_000))
    assert (few.batch, few.epochs) == (16, 10)
    assert (some.batch, some.epochs) == (32, 10)
    assert (many.batch, many.epochs) == (128, 3)
    assert find("lstm").recipe(10_000, 2).batch == 64  # never larger than the network's own


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'textcnn'"):
        build("textcn", {}, SHAPE)


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model\.options of 'textcnn': unknown key 'filter': did you mean 'filters'"):
        build("textcnn", {"filter": 3}, SHAPE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("textcnn", {"widths": []}),
        ("bag", {"dim": -1}),
        ("transformer", {"dim": 30, "heads": 4}),
        ("mlp", {"dim": "x"}),
    ],
)
def test_an_impossible_option_is_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"model.options of '{name}'"):
        build(name, options, SHAPE)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no folder of that name with a config\.json"):
        build(str(tmp_path), {}, SHAPE)


@pytest.mark.parametrize("name", ["own_networks:Plain", "own_networks:Masked"])
def test_a_users_module_stands_where_a_network_is_named(name: str) -> None:
    network = build(name, {}, SHAPE)
    assert find(name).encodings == ("tokens",)
    found = logits(network, TEXTS)
    assert found.shape == (2, 3)
    again = build(name, {}, SHAPE)
    again.load_state_dict(network.state_dict())
    assert torch.equal(logits(again, TEXTS), found)


def test_the_mask_hides_padding_from_a_users_module() -> None:
    network = build("own_networks:Masked", {}, SHAPE)
    alone = {name: ragged.take(np.array([1])) for name, ragged in TEXTS.items()}
    torch.testing.assert_close(logits(network, alone)[0], logits(network, TEXTS)[1])


def test_the_constructors_other_arguments_are_options() -> None:
    network = build("own_networks:Plain", {"width": 5}, SHAPE)
    assert network.get_parameter("module.output.weight").shape == (3, 5)
    with pytest.raises(ConfigError, match="unknown key 'widht': did you mean 'width'"):
        build("own_networks:Plain", {"widht": 5}, SHAPE)
    with pytest.raises(ConfigError, match="key 'width' = 'wide'"):
        build("own_networks:Plain", {"width": "wide"}, SHAPE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Fixed", r"returned torch\.float32 \(2, 2\); expected logits, a float tensor of shape \(2, 3\)"),
        ("Sequence", r"returned torch\.float32 \(2, 4, 3\); expected"),
        ("Tuple", r"returned tuple; expected"),
    ],
)
def test_a_wrong_shape_is_explained(name: str, message: str) -> None:
    network = build(f"own_networks:{name}", {}, SHAPE)
    with pytest.raises(ConfigError, match=message):
        logits(network, TEXTS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Greedy", r"forward takes \(ids, mask, lengths\); expected forward\(ids\) or forward\(ids, mask\)"),
        ("Broken", r"cannot be built with \{'depth': 1\}: RuntimeError: no room"),
        ("NOT_A_CLASS", "expected a class derived from torch.nn.Module"),
    ],
)
def test_what_cannot_be_a_network_is_explained(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(f"own_networks:{name}", {}, SHAPE)


def test_a_users_class_that_follows_the_seam_is_taken_as_it_is() -> None:
    network = build("own_networks:Following", {"scale": 2.0}, SHAPE)
    assert type(network).__name__ == "Following"
    assert logits(network, TEXTS)[:, 0].tolist() == [16.0, 8.0]
    with pytest.raises(NotFoundError, match="cannot be imported"):
        build("own_networks:Absent", {}, SHAPE)


def test_an_own_module_is_rebuilt_from_a_saved_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    network = build("own_networks:Plain", {"width": 5}, SHAPE, saved_in=tmp_path)
    assert type(network).__name__ == "OwnNetwork"
