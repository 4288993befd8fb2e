"""A small language model trained for the same wall time by FastServe, by a plain loop, and by Hugging Face Trainer.

    python benchmarks/train_lm.py TRAIN.jsonl [--validation DEV.jsonl] [--text COLUMN] [--seconds 300]
            [--network decoder-15m] [--rounds 1] [--sides fastserve same-optimizer plain trainer]

All train the same decoder (same sizes, the tokenizer that FastServe learned, the same initial scale) in the same
precision, bfloat16 where the processor multiplies it, and are judged on the same validation rows: bits for each
character. `fastserve` is what the framework chooses itself; `same-optimizer` its loop with that of the others, AdamW,
so that tokens/s can be compared. `plain` is a loop as nanoGPT has it: tokens of all documents in one stream, random
windows of the context, AdamW with warm-up and cosine, logits of all tokens at once.
`trainer` has a `LlamaForCausalLM`, one document a row, padded to the longest of the batch, and AdamW as Trainer sets it
up. Each plans its schedule for as many steps as fit the time, by the speed of its first steps, which are thrown away.
Each side is a process of its own, and the sides take turns. Needs the extra `benchmark`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIDES = ("fastserve", "same-optimizer", "plain", "trainer")
TRIAL_STEPS = 11
PASSED = ("seconds", "context", "batch", "precision")
"""Options that a side's process is given."""


def main() -> None:
    options = arguments()
    if options.side:
        print(json.dumps(SIDE[options.side](Path(options.train), options)))
        return
    with tempfile.TemporaryDirectory(prefix="fastserve-lm-") as name:
        prepare(options, Path(name))
        found: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
        for turn in range(options.rounds):
            for side in options.sides:
                result = run(side, Path(name), options)
                found[side].append(result)
                print(f"round {turn + 1} {side:14} {shown(result)}", flush=True)
        print()
        for side, results in found.items():
            middle = {key: statistics.median(result[key] for result in results) for key in results[0]}
            print(f"median  {side:14} {shown(middle)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("--validation", help="a file; without it a share of the training rows")
    parser.add_argument("--text", help="column of the texts, where the file has rows")
    parser.add_argument("--network", default="decoder-15m")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=16, help="contexts in a step")
    parser.add_argument("--seconds", type=float, default=300, help="of training, for each side")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--rate", type=float, help="learning rate of plain and trainer; default: 1e-3")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(side: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    words = [word for name in PASSED for word in (f"--{name}", str(getattr(options, name)))]
    rate = ["--rate", str(options.rate)] if options.rate else []
    command = [sys.executable, __file__, str(folder), "--side", side, *words, *rate]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def shown(result: dict[str, float]) -> str:
    return (
        f"{result['bits']:.4f} bits a character after {result['steps']:,.0f} steps, {result['seconds']:,.0f} s; "
        f"{result['tokens'] / result['seconds']:,.0f} tokens/s, {result['tokens'] / result['processor']:,.0f} for each "
        "second of a core"
    )


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """The configuration, and the data encoded once for all sides."""
    from fastserve.config import load_config
    from fastserve.training.generation.prepare import prepare as write

    words = [
        "task=generation",
        f"data.train={options.train}",
        f"text.max_length={options.context}",
        f"text.vocabulary_size={options.vocabulary}",
        f"model.network={options.network}",
        f"train.batch={options.batch}",
        f"train.precision={options.precision}",
        "train.early_stopping=0",
        *([f"data.validation={options.validation}"] if options.validation else []),
        *([f"data.columns.text={options.text}"] if options.text else []),
    ]
    config = load_config(None, words)
    (folder / "config.json").write_text(config.model_dump_json(), "utf-8")
    write(config, folder / "data")


@dataclass(frozen=True)
class Job:
    """What a side is given."""

    setup: Any
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Job:
        from fastserve.config import Config
        from fastserve.training.generation.prepare import load
        from fastserve.training.generation.setup import Setup

        config = Config.model_validate_json((folder / "config.json").read_text("utf-8"))
        return cls(Setup(config, load(folder / "data")), folder)

    def bits(self, network: Any) -> float:
        """Bits for each character of the validation rows, under any network of this module's own kind."""
        import torch

        from fastserve.models.ragged import RaggedTensor
        from fastserve.tasks.generation import Generation
        from fastserve.training.generation.setup import batches

        rows, task = self.setup.prepared.validation, Generation()
        network.eval()
        with torch.inference_mode():
            parts = [rows.batch(chosen) for chosen in batches(rows)]
            scores = [
                task.score(network, {"tokens": RaggedTensor.from_ragged(p.inputs["tokens"])}).numpy() for p in parts
            ]
        metrics = task.quick_metrics(np.concatenate(scores), np.concatenate([part.targets for part in parts]))
        return metrics["bits_per_character"]


@dataclass
class Clock:
    """Wall and processor seconds of training steps alone."""

    wall: float = 0.0
    processor: float = 0.0

    def __enter__(self) -> Clock:
        self._start = time.perf_counter(), time.process_time()
        return self

    def add(self, other: Clock) -> None:
        self.wall += other.wall
        self.processor += other.processor

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.processor += time.process_time() - self._start[1]


def timed_steps(step: Callable[[], int], seconds: float) -> int:
    """How many steps fit: by the mean of a few, of which the first does not count."""
    times = []
    for _ in range(TRIAL_STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return max(int(seconds / statistics.mean(times[1:])), 1)


def with_fastserve(folder: Path, options: argparse.Namespace, optimizer: str = "auto") -> dict[str, float]:
    """The framework's own loop, with what it chooses itself."""
    from fastserve.training.events import Stepped
    from fastserve.training.train import ready_machine

    job = Job.open(folder)
    train = job.setup.config.train.model_copy(update={"optimizer": optimizer})
    job = Job(type(job.setup)(job.setup.config.model_copy(update={"train": train}), job.setup.prepared), folder)
    ready_machine(train)
    trial = job.setup.run(folder / "none", folder / "none")
    rows = iter(trial.plan.epoch(0))
    steps = timed_steps(lambda: trial.step(trial.train.batch(next(rows))).items, options.seconds)
    train = train.model_copy(update={"max_steps": steps, "epochs": "auto", "checkpoint_seconds": 1e9})
    setup = type(job.setup)(job.setup.config.model_copy(update={"train": train}), job.setup.prepared)
    with tempfile.TemporaryDirectory() as name:
        run = setup.run(Path(name), Path(name))
        clock, tokens, done = Clock(), 0, 0
        events = run.events()
        while True:
            step = Clock()
            with step:
                event = next(events, None)
            if event is None:
                break
            if isinstance(event, Stepped):  # judging is not training, and the others are not charged for it
                clock.add(step)
                tokens, done = tokens + event.items, event.step
    return result(job.bits(run.network), done, tokens, clock)


def with_plain(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """A loop as nanoGPT has it."""
    import torch
    from torch.nn import functional

    job = Job.open(folder)
    stream = torch.from_numpy(
        np.concatenate([b.inputs["tokens"].values for b in job.setup.prepared.train.in_order(1 << 16)])
    )
    torch.manual_seed(0)
    precision = computed_in(options)
    model = llama(job, context=options.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate or 1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def step(rate: float = 0.0) -> int:
        at = torch.randint(len(stream) - options.context - 1, (options.batch,)).tolist()
        ids = torch.stack([stream[place : place + options.context + 1] for place in at]).long()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            logits = model(input_ids=ids[:, :-1]).logits
            loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return ids[:, 1:].numel()

    steps = timed_steps(step, options.seconds)
    model.load_state_dict(start)
    optimizer.state.clear()
    clock, tokens = Clock(), 0
    for number in range(steps):
        with clock:
            tokens += step((options.rate or 1e-3) * schedule(number, steps))
    return result(job.bits(ours(job, model)), steps, tokens, clock)


def with_trainer(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Hugging Face Trainer as a person would write it."""
    import torch
    import transformers

    job = Job.open(folder)
    transformers.set_seed(0)
    clock = Clock()
    model = llama(job, context=options.context)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    lengths = job.setup.prepared.train.lengths("tokens")
    rows = max(int(options.batch * options.context / lengths.mean()), 1)
    trainer = hugging_trainer(transformers, job, model, folder, options, rows, TRIAL_STEPS, clock)
    trainer.train()
    steps = max(int(options.seconds / (clock.wall / TRIAL_STEPS)), 1)
    model.load_state_dict(start)
    clock = Clock()
    trainer = hugging_trainer(transformers, job, model, folder, options, rows, steps, clock)
    trainer.train()
    tokens = int(rows * steps * lengths.mean())
    torch.set_grad_enabled(False)
    return result(job.bits(ours(job, model)), steps, tokens, clock)


def hugging_trainer(
    transformers: Any,
    job: Job,
    model: Any,
    folder: Path,
    options: argparse.Namespace,
    rows: int,
    steps: int,
    clock: Clock,
) -> Any:
    import torch

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.__enter__()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.__exit__()

    def collate(found: list[Any]) -> dict[str, Any]:
        longest = max(len(ids) for ids in found)
        ids = torch.stack(
            [torch.nn.functional.pad(torch.from_numpy(one).long(), (0, longest - len(one))) for one in found]
        )
        mask = torch.stack([torch.arange(longest) < len(one) for one in found])
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}

    settings = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=rows,
        learning_rate=options.rate or 1e-3,
        adam_beta2=0.95,
        weight_decay=0.1,
        warmup_steps=max(steps // 20, 1),
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        save_strategy="no",
        report_to="none",
        logging_steps=10**9,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=computed_in(options) == torch.bfloat16,
        remove_unused_columns=False,
    )
    return transformers.Trainer(
        model, settings, train_dataset=list(documents(job)), data_collator=collate, callbacks=[Steps()]
    )


def computed_in(options: argparse.Namespace) -> Any:
    """The torch type of matrix products."""
    from fastserve import device

    return device.pick_precision(options.precision, device.pick_device())


def documents(job: Job) -> Iterator[Any]:
    for batch in job.setup.prepared.train.in_order(1024):
        tokens = batch.inputs["tokens"]
        yield from (tokens.between(place, place + 1).values.copy() for place in range(len(batch)))


def llama(job: Job, context: int) -> Any:
    """The same network as transformers builds it, with random weights."""
    import torch
    import transformers

    config = transformers.LlamaConfig(**{**json.loads(ours(job).files()["config.json"]), "use_cache": False})
    config.max_position_embeddings = max(context, config.max_position_embeddings)
    return transformers.LlamaForCausalLM(config).to(torch.float32).train()


def ours(job: Job, model: Any = None) -> Any:
    """Our network, with the weights of theirs."""
    network = job.setup.network()
    if model is not None:
        names = network.state_dict().keys()
        network.load_state_dict({name: value for name, value in model.state_dict().items() if name in names})
    return network


def schedule(step: int, steps: int) -> float:
    """Warm-up over a twentieth, then half a cosine down to a tenth, as nanoGPT has it."""
    warmup = max(steps // 20, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def result(bits: float, steps: int, tokens: int, clock: Clock) -> dict[str, float]:
    return {"bits": bits, "steps": steps, "tokens": tokens, "seconds": clock.wall, "processor": clock.processor}


SIDE: dict[str, Callable[[Path, argparse.Namespace], dict[str, float]]] = {
    "fastserve": with_fastserve,
    "same-optimizer": lambda folder, options: with_fastserve(folder, options, "adamw"),
    "plain": with_plain,
    "trainer": with_trainer,
}


if __name__ == "__main__":
    main()
