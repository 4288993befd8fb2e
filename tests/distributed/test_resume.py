"""A run that was cut goes on under another strategy and on another number of workers, by the same command."""

from __future__ import annotations

import functools
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import checkpoint, failed, finished, start, wait_for
from test_several_workers import assert_close

ROWS, BATCH, EPOCHS = 300, 15, 4
TRAINED = 240
"""A fifth of the rows is for validation. All steps are full, so that no worker computes a row in vain."""
STEPS = TRAINED // BATCH
CUT = STEPS + 5
"""In the middle of the second epoch."""
Seen = Mapping[int, list[tuple[int, ...]]]
Weights = dict[str, torch.Tensor]
Shared = tuple[int, str]
"""How many workers, and by which strategy."""
ALONE = (1, "alone")


def words(folder: Path) -> list[str]:
    """A command whose texts are all different, so that a network knows them again."""
    data = folder / "texts.tsv"
    lines = [f"{'good' if row % 3 else 'bad'}\tleft{row // 20} right{row % 20}\n" for row in range(ROWS)]
    data.write_text("label\ttext\n" + "".join(lines), "utf-8")
    settings = [f"train.batch={BATCH}", f"train.epochs={EPOCHS}", "train.early_stopping=0", "train.keep=last"]
    more = ["train.checkpoint_seconds=0", "text.segment=whitespace", "text.min_count=1", "train.threads=1"]
    return ["train", "--data", str(data), "--network", "watched:Watched", *settings, *more]


def shared_by(workers: int, strategy: str) -> list[str]:
    if workers == 1:
        return []
    options = ["distributed.options.inner_steps=4"] if strategy == "diloco" else []
    return ["--workers", str(workers), f"distributed.strategy={strategy}", *options]


def seen(folder: Path, after: int = 0) -> Seen:
    """The rows of each step on all workers, when the run began after so many steps."""
    steps: dict[int, list[tuple[int, ...]]] = {}
    for path in folder.glob("*.jsonl"):
        for line in map(json.loads, path.read_text("utf-8").splitlines()):
            steps.setdefault(after + line["step"], []).extend(map(tuple, line["rows"]))
    return steps


def in_epoch(number: int, *runs: Seen) -> Counter[tuple[int, ...]]:
    steps = range(number * STEPS + 1, (number + 1) * STEPS + 1)
    return Counter(row for run in runs for step in steps for row in run.get(step, []))


@dataclass(frozen=True)
class Cut:
    """A run that was ended on its way. home: with its folder; step: of its newest checkpoint; seen: up to there."""

    words: Sequence[str]
    home: Path
    step: int
    seen: Seen

    @classmethod
    def after(cls, folder: Path, shared: Shared) -> Cut:
        folder.mkdir()
        home, notes = folder / "home", folder / "seen"
        notes.mkdir()
        command = words(folder)
        process = start(home, *command, *shared_by(*shared), env={"SEEN": str(notes)})
        wait_for(lambda: any(int(path.name) >= CUT for path in checkpoint(home)()), process)
        process.send_signal(signal.SIGTERM)
        failed(process, -signal.SIGTERM if shared == ALONE else 128 + signal.SIGTERM)  # as a shell says it
        step = max(int(path.name) for path in checkpoint(home)())
        assert step < EPOCHS * STEPS, "it had ended already"
        return cls(command, home, step, {n: rows for n, rows in seen(notes).items() if n <= step})

    def resumed(self, folder: Path, shared: Shared) -> tuple[Weights, Seen]:
        """The weights in the end, and what was trained on, when a copy of it goes on in another way."""
        home, notes = folder / "home", folder / "seen"
        shutil.copytree(self.home, home)
        notes.mkdir()
        weights, said = finished(start(home, *self.words, *shared_by(*shared), env={"SEEN": str(notes)}))
        assert f"resumed at step {self.step} of {EPOCHS * STEPS}" in said
        return weights, seen(notes, self.step)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Shared], Cut]:
    """The run that some workers shared and that was ended, each made once."""
    folder = tmp_path_factory.mktemp("cut")
    return functools.cache(lambda shared: Cut.after(folder / f"{shared[1]}-{shared[0]}", shared))


@pytest.fixture(scope="module")
def alone(cut: Callable[[Shared], Cut], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Shared], Weights]:
    """What one worker makes of such a run."""
    return functools.cache(lambda shared: cut(shared).resumed(tmp_path_factory.mktemp("alone"), ALONE)[0])


def assert_trained_once(*runs: Seen) -> None:
    for epoch in range(EPOCHS):
        rows = in_epoch(epoch, *runs)
        assert len(rows) == TRAINED
        assert set(rows.values()) == {1}
    assert all(len(rows) == BATCH for run in runs for rows in run.values())


def test_a_run_of_shards_goes_on_in_one_worker(cut: Callable[[Shared], Cut], tmp_path: Path) -> None:
    before = cut((2, "fsdp"))
    _, after = before.resumed(tmp_path, ALONE)
    assert_trained_once(before.seen, after)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, "alone"), (2, "fsdp")),
        ((2, "ddp"), (2, "fsdp")),
        ((2, "fsdp"), (3, "ddp")),
        ((2, "fsdp"), (3, "fsdp")),
        ((2, "diloco"), (2, "ddp")),
        ((2, "diloco"), (3, "fsdp")),
    ],
)
def test_it_goes_on_to_what_one_worker_would_find(
    cut: Callable[[Shared], Cut], alone: Callable[[Shared], Weights], tmp_path: Path, before: Shared, after: Shared
) -> None:
    """Each row of every epoch is trained on once, also in the epoch that was cut."""
    weights, then = cut(before).resumed(tmp_path, after)
    assert_trained_once(cut(before).seen, then)
    assert_close(weights, alone(before))


@pytest.mark.heavy
@pytest.mark.parametrize("before", [(2, "ddp"), (2, "diloco")])
def test_it_goes_on_where_workers_train_alone(cut: Callable[[Shared], Cut], tmp_path: Path, before: Shared) -> None:
    weights, then = cut(before).resumed(tmp_path, (3, "diloco"))
    assert_trained_once(cut(before).seen, then)
    assert all(bool(value.isfinite().all()) for value in weights.values())
