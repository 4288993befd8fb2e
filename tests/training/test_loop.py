"""The loop learns, stops, keeps the best weights, and resumes to the same numbers."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies
from torch import Tensor, nn

from fastserve.config import TrainConfig
from fastserve.errors import ConfigError, TrainingError
from fastserve.models.ragged import RaggedTensor
from fastserve.tasks.classification import Classification
from fastserve.training.events import Checkpointed, Evaluated, Event, Finished, RateReduced, Resumed, Stepped, WentBack
from fastserve.training.loop import TrainingRun
from fastserve.training.optimizers import Optimizers
from fastserve.training.plans import some
from fastserve.training.settings import Settings, settle
from fastserve.types import Batch, LongArray, ParameterGroup, Ragged, Recipe

ROWS, WORDS = 60, 30
RECIPE = Recipe(epochs=4, batch=8, learning_rate=0.05)


class Averager(nn.Module):
    """Mean of embeddings with dropout, so that a resume must restore the random numbers too."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, outputs)

    def forward(self, inputs: dict[str, RaggedTensor]) -> Tensor:
        ids, mask = inputs["tokens"].padded()
        mean = (self.table(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.head(self.dropout(mean))


class Memory:
    def __init__(self, ragged: Ragged, targets: np.ndarray) -> None:
        self.ragged, self.targets = ragged, targets

    def __len__(self) -> int:
        return len(self.ragged)

    def batch(self, rows: LongArray) -> Batch:
        return Batch(rows, {"tokens": self.ragged.take(rows)}, self.targets[rows])


class Shuffled:
    def epoch(self, number: int) -> list[LongArray]:
        order = np.random.default_rng(number).permutation(ROWS)
        return [order[start : start + 8] for start in range(0, ROWS, 8)]


def rows(noise: bool = False) -> Memory:
    random = np.random.default_rng(1)
    targets = np.arange(ROWS) % 2
    texts = [random.integers(0, WORDS // 2, 6) + (0 if noise else WORDS // 2 * target) for target in targets]
    return Memory(Ragged.from_rows(texts), targets.astype(np.int64))


def make(folder: Path, *, recipe: Recipe = RECIPE, noise: bool = False, **changes: object) -> TrainingRun:
    torch.manual_seed(0)
    task = Classification(["no", "yes"])
    found = settle(TrainConfig(), recipe, task, rows=ROWS)
    found = replace(found, **{"checkpoint_seconds": 0.0, **changes})
    data = rows(noise)
    return TrainingRun(
        Averager(2),
        task,
        found,
        train=data,
        plan=Shuffled(),
        validation=data,
        validation_batches=[np.arange(ROWS)],
        device=torch.device("cpu"),
        precision=torch.float32,
        folder=folder,
    )


def of_kind(events: list[Event], kind: type) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def test_it_learns(tmp_path: Path) -> None:
    run = make(tmp_path)
    events = list(run.events())
    assert of_kind(events, Evaluated)[-1].metrics["accuracy"] == 1.0
    assert isinstance(events[-1], Finished)
    assert not run.network.training


def test_the_first_steps_equal_plain_pytorch(tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer="sgd", weight_decay=0.0, warmup=0.0, schedule="constant", gradient_clip=0.0)
    run = make(tmp_path, recipe=recipe)
    run.network.dropout.p = 0.0
    reference = Averager(2)
    reference.load_state_dict(run.network.state_dict())
    reference.dropout.p = 0.0
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05)
    data = rows()
    for chosen in Shuffled().epoch(0)[:5]:
        batch = data.batch(chosen)
        run.step(batch)
        inputs = {"tokens": RaggedTensor.from_ragged(batch.inputs["tokens"])}
        loss = nn.functional.cross_entropy(reference(inputs), torch.from_numpy(batch.targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(run.network.state_dict()[name], value)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=strategies.lists(strategies.integers(1, 40), min_size=1, max_size=4),
    average=strategies.sampled_from([0, 0.9]),
)
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, kills: list[int], average: float) -> None:
    shutil.rmtree(tmp_path)
    recipe = replace(RECIPE, average=average)
    whole = make(tmp_path / "whole", recipe=recipe)
    last = list(whole.events())[-1]
    for number in kills:
        events = make(tmp_path / "cut", recipe=recipe).events()
        for _, _event in zip(range(number), events, strict=False):
            pass
        events.close()
    cut = make(tmp_path / "cut", recipe=recipe)
    assert list(cut.events())[-1] == last
    for name, value in whole.network.state_dict().items():
        assert torch.equal(cut.network.state_dict()[name], value), name


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make(tmp_path / "whole")
    list(whole.events())
    events = make(tmp_path / "cut").events()
    for _ in range(12):
        next(events)
    events.close()
    places = sorted((tmp_path / "cut").iterdir())
    assert len(places) == 2
    content = bytearray((places[1] / "worker-00000.safetensors").read_bytes())
    content[-1] ^= 1
    (places[1] / "worker-00000.safetensors").write_bytes(content)
    cut = make(tmp_path / "cut")
    found = list(cut.events())
    assert isinstance(found[0], Resumed)
    assert found[0].step == int(places[0].name)
    assert "damaged" in caplog.text
    for name, value in whole.network.state_dict().items():
        assert torch.equal(cut.network.state_dict()[name], value)


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    run = make(tmp_path, noise=True, recipe=replace(RECIPE, epochs=200))
    events = list(run.events())
    evaluations = of_kind(events, Evaluated)
    best = max(evaluations, key=lambda event: event.metrics["accuracy"])
    assert "no better accuracy" in events[-1].reason
    assert events[-1].best_step == best.step
    logits, targets = run.scores(run.validation, run.validation_batches)
    assert run.task.quick_metrics(logits, targets) == pytest.approx(best.metrics)


def test_the_last_weights_are_kept_where_the_recipe_says_so(tmp_path: Path) -> None:
    run = make(tmp_path, noise=True, recipe=replace(RECIPE, epochs=10, early_stopping=0, keep="last"))
    events = list(run.events())
    assert events[-1].best_step == events[-1].step
    logits, targets = run.scores(run.validation, run.validation_batches)
    assert run.task.quick_metrics(logits, targets) == pytest.approx(of_kind(events, Evaluated)[-1].metrics)


def test_a_plateau_lowers_the_rate(tmp_path: Path) -> None:
    recipe = replace(RECIPE, schedule="plateau", warmup=0.0, epochs=12, early_stopping=0)
    run = make(tmp_path, noise=True, recipe=recipe, plateau_patience=1)
    events = list(run.events())
    reductions = of_kind(events, RateReduced)
    assert reductions
    after = [event for event in of_kind(events, Stepped) if event.step > reductions[0].step]
    assert after[0].learning_rate == pytest.approx(0.05 * reductions[0].factor)


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path: Path) -> None:
    run = make(tmp_path, recipe=replace(RECIPE, learning_rate=1e30, gradient_clip=0.0, warmup=0.0))
    with pytest.raises(TrainingError, match=r"lower train\.learning_rate"):
        list(run.events())


def test_a_rate_that_is_too_high_is_lowered_until_the_run_learns(tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer="sgd", learning_rate=1e37, gradient_clip=0.0, warmup=0.0, schedule="constant")
    with pytest.raises(TrainingError, match="lowering the rate did not help"):
        list(make(tmp_path / "hopeless", recipe=recipe).events())
    run = make(tmp_path / "high", recipe=replace(recipe, learning_rate=800.0, spike=20.0, epochs=12, early_stopping=0))
    events = list(run.events())
    back = of_kind(events, WentBack)
    assert back
    assert of_kind(events, Stepped)[-1].learning_rate == pytest.approx(800.0 * back[-1].factor)
    assert all(value.isfinite().all() for value in run.network.state_dict().values())


@pytest.mark.parametrize("what", ["skip_batch", "lower_rate"])
def test_what_was_decided_is_remembered_by_a_resumed_run(tmp_path: Path, what: str) -> None:
    def broken(folder: Path) -> TrainingRun:
        run = make(folder, recipe=replace(RECIPE, epochs=3), on_divergence=what)
        plain = run.computing.gradients

        def gradients(batch: Batch, pieces: object) -> float:
            value = plain(batch, pieces)
            at, factor = run.progress.step, run.recovery.decisions.factor
            return float("nan") if at == 11 and factor == 1.0 else value

        run.computing.gradients = gradients
        return run

    whole = broken(tmp_path / "whole")
    expected = list(whole.events())
    assert len(of_kind(expected, WentBack)) == 1
    cut = broken(tmp_path / "cut").events()
    while not isinstance(next(cut), WentBack):
        pass
    cut.close()
    resumed = broken(tmp_path / "cut")
    events = list(resumed.events())
    assert not of_kind(events, WentBack)
    assert events[-1] == expected[-1]
    for name, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


def test_a_few_steps_may_be_all(tmp_path: Path) -> None:
    events = list(make(tmp_path, max_steps=11).events())
    assert events[-1].reason == "train.max_steps done"
    assert [event.step for event in of_kind(events, Evaluated)] == [8, 11]


def test_fewer_validation_rows_for_evaluations_inside_the_run(tmp_path: Path) -> None:
    batches = [np.arange(start, start + 6) for start in range(0, 60, 6)]
    assert [int(chosen[0]) for chosen in some(batches, 20)] == [0, 24, 54]
    assert some(batches, None) is batches
    assert len(some(batches, 1)) == 1


def test_checkpoints_are_few_and_timed(tmp_path: Path) -> None:
    assert not of_kind(list(make(tmp_path / "a", checkpoint_seconds=1e9).events()), Checkpointed)
    run = make(tmp_path / "b")
    assert of_kind(list(run.events()), Checkpointed)
    assert len(list((tmp_path / "b").iterdir())) == 2


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_rise_then_fall(schedule: str) -> None:
    found = Settings(replace(RECIPE, schedule=schedule, warmup=0.25), 10, 10, 1, "loss", False, 0, 0)
    rates = [found.rate_at(step) for step in range(found.total_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == 1 if schedule == "constant" else rates[-1] < 0.1


def test_a_wrong_metric_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        settle(TrainConfig(metric="acuracy"), RECIPE, Classification(["a", "b"]), rows=10)


def test_what_the_user_says_wins_over_the_recipe() -> None:
    found = settle(TrainConfig(epochs=7, learning_rate=1.0), RECIPE, Classification(["a", "b"]), rows=10)
    assert found.recipe == replace(RECIPE, epochs=7, learning_rate=1.0)


class TwoPaces(Averager):
    """Its head is updated once in three steps."""

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(("head.weight", "head.bias"), accumulate=3)]


def test_a_group_that_accumulates_equals_one_step_on_the_mean_gradient() -> None:
    network = TwoPaces(2)
    network.dropout.p = 0.0
    reference = copy.deepcopy(network)
    optimizers = Optimizers(network, replace(RECIPE, gradient_clip=0.0, learning_rate=0.1))
    torch_optimizer = torch.optim.AdamW(reference.head.parameters(), 0.1, (0.9, 0.98), weight_decay=0.0)
    data, task = rows(), Classification(["no", "yes"])
    for step, chosen in enumerate(Shuffled().epoch(0)[:6], start=1):
        batch = data.batch(chosen)
        inputs = {"tokens": RaggedTensor.from_ragged(batch.inputs["tokens"])}
        reference.table.load_state_dict(network.table.state_dict())
        (task.loss(reference, inputs, torch.from_numpy(batch.targets)) / 3).backward()
        task.loss(network, inputs, torch.from_numpy(batch.targets)).backward()
        optimizers.step(1.0)
        assert optimizers.at_rest == (step % 3 == 0)
        if step % 3 == 0:
            torch_optimizer.step()
            torch_optimizer.zero_grad()
        torch.testing.assert_close(network.head.weight, reference.head.weight)


def test_a_run_with_two_paces_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Averager", TwoPaces)
    whole = make(tmp_path / "whole")
    list(whole.events())
    for number in (7, 15):
        events = make(tmp_path / "cut").events()
        for _, _event in zip(range(number), events, strict=False):
            pass
        events.close()
    cut = make(tmp_path / "cut")
    assert isinstance(next(iter(cut.events())), Resumed)
    cut = make(tmp_path / "cut")
    list(cut.events())
    for name, value in whole.network.state_dict().items():
        assert torch.equal(cut.network.state_dict()[name], value), name
