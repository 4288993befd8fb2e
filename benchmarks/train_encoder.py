"""How many texts a second a transformer encoder learns from, beside Hugging Face Trainer at equal settings.

    python benchmarks/train_encoder.py [TRAIN.tsv] [--rows 2000] [--rounds 2] [--seeds 1] [--epochs 2] [--rate 5e-4]

Both sides train an encoder of 4 layers of 256 with random weights on the same token ids, with the same batch size,
epochs, learning rate, warm-up, weight decay, clipping and precision. Trainer: a `BertConfig`, the collator that pads to
the longest text, and its own defaults, as a person would write it. Each side is a process of its own, and the sides
take turns. Only training steps are timed: no start, preparation or evaluation. The last column counts processor time,
which other work on the machine does not blur. With several seeds each round is run with each of them, and accuracies
are told as means with their standard errors: one seed alone says little about networks of random weights. Needs the
extra `benchmark`.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastserve import device
from fastserve.config import Config, load_config

DATA = Path(__file__).resolve().parents[2] / "shared/data/zh_sentiment_100k/train.tsv.gz"
VALIDATION_ROWS = 1_000
SIDES = ("trainer", "fastserve")
TRAINER, FASTSERVE = SIDES


def main() -> None:
    options = arguments()
    if options.side:
        side = {TRAINER: with_trainer, FASTSERVE: with_fastserve}[options.side]
        print(json.dumps(side(Path(options.train), options.seed)))
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(options, Path(name))
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for turn, seed, side in itertools.product(range(options.rounds), range(options.seeds), SIDES):
            result = measure(side, Path(name), seed)
            found[side].append(result)
            print(f"round {turn + 1}, seed {seed}: {side:10}" + show(result), flush=True)
        summarize(found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="?", default=str(DATA))
    parser.add_argument(
        "--rows", type=int, default=2000, help=f"the first rows of the file; the next {VALIDATION_ROWS:,} validate"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1, help="of the first weights, the order of rows and dropout")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- what both sides are given


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """`folder/data` with encoded rows, and `folder/config.json` with the settings."""
    from fastserve.training.classification import prepare as preparation

    with (gzip.open if options.train.endswith(".gz") else open)(options.train, "rt", encoding="utf-8") as source:
        header = next(source)
        for part, rows in (("train", options.rows), ("validation", VALIDATION_ROWS)):
            (folder / f"{part}.tsv").write_text("".join([header, *itertools.islice(source, rows)]), "utf-8")
    train = {"epochs": options.epochs, "batch": options.batch, "learning_rate": options.rate, "keep": "last"}
    config = load_config(
        values={
            "data": {"train": str(folder / "train.tsv"), "validation": str(folder / "validation.tsv")},
            "text": {"segment": "subword", "max_length": 64},
            "model": {"network": "transformer"},
            "train": {**train, "early_stopping": 0, "precision": options.precision},
        }
    )
    (folder / "config.json").write_text(config.model_dump_json(), "utf-8")
    preparation.prepare(config, folder / "data")
    prepared = preparation.load(folder / "data")
    lengths = prepared.train.lengths("tokens")
    precision = str(device.pick_precision(options.precision, device.pick_device("cpu"))).removeprefix("torch.")
    print(
        f"{len(lengths):,} rows of {lengths.mean():.0f} tokens (most {lengths.max()}), "
        f"{prepared.shape.vocabulary['tokens']:,} kinds; {options.epochs} times in batches of {options.batch}, "
        f"{precision}, {device.cores()} cores"
    )


def read(folder: Path, seed: int) -> tuple[Config, Any, Any]:
    """Configuration, prepared data and what a run is made of, the same for both sides."""
    from fastserve.training.classification.prepare import load
    from fastserve.training.classification.setup import Setup

    config = Config.model_validate_json((folder / "config.json").read_text("utf-8"))
    config = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
    prepared = load(folder / "data")
    return config, prepared, Setup(config, prepared)


# ---- the sides


def with_fastserve(folder: Path, seed: int) -> dict[str, float]:
    """The loop that `fastserve train` runs; what is between two steps counts, evaluations do not."""
    from fastserve.training.events import Evaluated, Stepped
    from fastserve.training.train import ready_machine

    config, _, setup = read(folder, seed)
    ready_machine(config.train)
    events = setup.run(folder / "checkpoints-of-nothing", folder / "scratch").events()
    seconds, processor, rows, accuracy = 0.0, 0.0, 0, 0.0
    while True:
        wall, busy = time.perf_counter(), time.process_time()
        event = next(events, None)
        if event is None:
            return result(rows, seconds, processor, accuracy)
        if isinstance(event, Stepped):
            seconds, processor = seconds + time.perf_counter() - wall, processor + time.process_time() - busy
            rows += event.rows
        elif isinstance(event, Evaluated):
            accuracy = event.metrics["accuracy"]


def with_trainer(folder: Path, seed: int) -> dict[str, float]:
    """What a person writes who trains a small BERT from random weights."""
    transformers: Any = importlib.import_module("transformers")
    config, prepared, setup = read(folder, seed)
    transformers.set_seed(config.train.seed)
    tokenizer_file = str(folder / "data/tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, pad_token="[PAD]")
    clock = step_clock()
    trainer = transformers.Trainer(
        transformers.BertForSequenceClassification(bert_config(transformers, prepared)),
        training_arguments(transformers, folder, setup),
        transformers.DataCollatorWithPadding(tokenizer),
        examples(prepared.train),
        examples(prepared.validation.store),
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()},
        callbacks=[clock],
    )
    trainer.train()
    rows = len(prepared.train) * setup.settings().recipe.epochs
    return result(rows, clock.seconds, clock.processor, trainer.evaluate()["eval_accuracy"])


def bert_config(transformers: Any, prepared: Any) -> Any:
    """The same size as the network `transformer`."""
    from fastserve.models.encoder import EncoderOptions

    options = EncoderOptions()
    return transformers.BertConfig(
        vocab_size=prepared.shape.vocabulary["tokens"],
        hidden_size=options.dim,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.feedforward,
        max_position_embeddings=64,
        num_labels=prepared.shape.outputs,
    )


def training_arguments(transformers: Any, folder: Path, setup: Any) -> Any:
    """FastServe's settings in the words of Trainer; what is not named is left as it comes."""
    import torch

    settings = setup.settings()
    recipe = settings.recipe
    return transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.gradient_clip,
        warmup_steps=round(recipe.warmup * settings.total_steps),
        lr_scheduler_type=recipe.schedule,
        bf16=setup.precision(settings, torch.device("cpu")) == torch.bfloat16,
        seed=settings.seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def examples(store: Any) -> list[dict[str, Any]]:
    """Rows as Trainer wants them."""
    import numpy as np

    batch = store.batch(np.arange(len(store)))
    ids = np.split(batch.inputs["tokens"].values, batch.inputs["tokens"].offsets[1:-1])
    return [{"input_ids": row.tolist(), "label": int(label)} for row, label in zip(ids, batch.targets, strict=True)]


def step_clock() -> Any:
    """A callback that times the training, from before its first step to after its last."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter(), time.process_time()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.started[0]
            self.processor = time.process_time() - self.started[1]

    return StepClock()


# ---- the race


def result(rows: int, seconds: float, processor: float, accuracy: float) -> dict[str, float]:
    return {"rate": rows / seconds, "rate_of_processor": rows / processor, "accuracy": accuracy}


def measure(side: str, folder: Path, seed: int) -> dict[str, float]:
    """Run a side in a process of its own, with threads that sleep while they wait."""
    command = [sys.executable, __file__, str(folder), "--side", side, "--seed", str(seed)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} ended with {done.returncode}:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(result: Mapping[str, float]) -> str:
    return (
        f"{result['rate']:8.1f} texts/s  accuracy {result['accuracy']:.4f}  "
        f"{result['rate_of_processor']:8.1f} texts per second of a core"
    )


def summarize(found: Mapping[str, list[dict[str, float]]]) -> None:
    """Medians, the mean accuracies with their standard errors, and the median of the rounds' ratios."""
    print()
    for side, results in found.items():
        print(f"{side:19}" + show({key: statistics.median(r[key] for r in results) for key in results[0]}))
    for side, results in found.items():
        accuracies = [one["accuracy"] for one in results]
        error = statistics.stdev(accuracies) / math.sqrt(len(accuracies)) if len(accuracies) > 1 else math.nan
        print(f"{side:19} mean accuracy {statistics.mean(accuracies):.4f}, standard error {error:.4f}")
    for key, title in (("rate", "times faster"), ("rate_of_processor", "of a core")):
        ratios = [ours[key] / theirs[key] for theirs, ours in zip(found[TRAINER], found[FASTSERVE], strict=True)]
        print(f"{title:19}{statistics.median(ratios):8.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
