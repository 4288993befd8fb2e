"""How many texts a second a transformer encoder answers on one core, by runtime, precision and batch size.

    OMP_WAIT_POLICY=passive python benchmarks/encoder_runtimes.py [MODEL --data FILE] [--texts 128] [--rounds 5]

Without MODEL: random weights, 4 layers of 256, texts of 4 to 64 tokens. Needs the extra `compress`. Contestants take
turns on the same texts, in batches of similar length, and medians are compared; seconds are those of the processor
(`--wall`: of the clock), since other work on the machine does not count in them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from fastserve import api
from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import NetworkSpec
from fastserve.bundle.runtimes.onnx import OnnxRuntime
from fastserve.bundle.runtimes.openvino import OpenVinoRuntime
from fastserve.bundle.runtimes.torch import TorchRuntime, build_network
from fastserve.compression import ExportOptions, export
from fastserve.config import TextConfig
from fastserve.models import NetworkShape, build, find
from fastserve.text.pipeline import TextPipeline
from fastserve.types import Ragged

BATCHES = (1, 8, 32)
FORMS = [("onnx", False), ("onnx", True), ("openvino", False), ("openvino", True)]
WORDS = 16_000

Batched = TorchRuntime | OnnxRuntime | OpenVinoRuntime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", help="a transformer's name or folder")
    parser.add_argument("--data", help="labelled texts for MODEL: the forms are checked on them, and answer them")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wall", action="store_true", help="count seconds of the clock instead of the processor")
    options = parser.parse_args()
    if (options.model is None) != (options.data is None):
        parser.error("MODEL and --data belong together")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bundle, data = (api.load(options.model).bundle, options.data) if options.model else random_encoder(Path(folder))
        texts = [text for text, _ in zip(api.read_texts(data), range(options.texts), strict=False)]
        tokens = bundle.pipeline.encode(texts)["tokens"]
        print(f"{len(texts)} texts of {tokens.lengths.mean():.0f} tokens (most {tokens.lengths.max()}), one thread")
        race(contestants(bundle, data, Path(folder)), tokens, options.rounds, options.wall)


def random_encoder(folder: Path) -> tuple[Bundle, str]:
    """A bundle of random weights, and a file of random words with random labels."""
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.integers(WORDS, size=n)) for n in generator.integers(4, 65, 300)]
    kind = find("transformer")
    config = TextConfig(segment="whitespace", min_count=1, max_length=64, vocabulary_size=WORDS)
    pipeline = TextPipeline.create(config, kind.encodings, preferences=kind.preferences)
    pipeline.fit(texts)
    vocabulary = {"tokens": pipeline.vocabulary_size("tokens")}
    torch.manual_seed(0)
    network = build("transformer", {}, NetworkShape(vocabulary, 2))
    bundle = save_bundle(
        folder / "random",
        task="classification",
        labels=("negative", "positive"),
        network=NetworkSpec(name="transformer", shape={"vocabulary": vocabulary, "outputs": 2}),
        pipeline=pipeline,
        weights=network.state_dict(),
    )
    rows = [
        f"{label}\t{text}" for label, text in zip(generator.choice(bundle.manifest.labels, 300), texts, strict=True)
    ]
    (folder / "random.tsv").write_text("\n".join(["label\ttext", *rows]) + "\n", "utf-8")
    return bundle, str(folder / "random.tsv")


def contestants(bundle: Bundle, data: str, folder: Path) -> dict[str, Batched]:
    found: dict[str, Batched] = {"torch fp32": TorchRuntime.load(bundle, threads=1)}
    found["torch bf16"] = TorchRuntime(build_network(bundle).eval().bfloat16(), torch.device("cpu"))
    for runtime, int8 in FORMS:
        options = ExportOptions(runtime=runtime, int8=int8, data=data)
        made = export(bundle, folder / options.form.replace(" ", "-"), options)
        size = sum(path.stat().st_size for path in made.bundle.folder.glob("model.[xbo]*"))
        print(f"{options.form}: {size / 2**20:.1f} MiB, {made.check.describe()}")
        kind = OnnxRuntime if runtime == "onnx" else OpenVinoRuntime
        found[options.form] = kind.load(made.bundle, threads=1)
    return found


def race(runtimes: Mapping[str, Batched], tokens: Ragged, rounds: int, wall: bool) -> None:
    """Print texts a second: in batches of a given size, and as the runtime itself divides 32 texts."""
    work = {(name, column): job for name, runtime in runtimes.items() for column, job in jobs(runtime, tokens).items()}
    clock = time.perf_counter if wall else time.process_time
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    for number in range(rounds + 1):
        for key, job in work.items():
            start = clock()
            job()
            if number:  # the first round builds what later ones use
                seconds[key].append(clock() - start)
    rates = {key: len(tokens) / statistics.median(values) for key, values in seconds.items()}
    columns = list(dict.fromkeys(column for _, column in work))
    print(f"{'texts/s (times torch fp32)':28s}" + "".join(f"{column:>16s}" for column in columns))
    for name in runtimes:
        cells = [f"{rates[name, c]:,.0f} ({rates[name, c] / rates['torch fp32', c]:.2f})" for c in columns]
        print(f"{name:28s}" + "".join(f"{cell:>16s}" for cell in cells))


def jobs(runtime: Batched, tokens: Ragged) -> dict[str, Callable[[], None]]:
    """One pass over all texts for each column of the table."""
    found = {f"batch {size}": _pass(runtime, divided(tokens, size), 1 << 30) for size in BATCHES}
    return {**found, "as served": _pass(runtime, divided(tokens, BATCHES[-1]), runtime.token_budget)}


def _pass(runtime: Batched, parts: list[Ragged], budget: int) -> Callable[[], None]:
    def run() -> None:
        runtime.token_budget = budget
        for part in parts:
            runtime.logits({"tokens": part})

    return run


def divided(tokens: Ragged, size: int) -> list[Ragged]:
    """Batches of `size` texts of similar length."""
    order = np.argsort(tokens.lengths, kind="stable")
    return [tokens.take(order[start : start + size]) for start in range(0, len(order), size)]


if __name__ == "__main__":
    main()
