"""Tokens per second of FastServe and its peers, writing with the same random weights on the same cores.

    python benchmarks/generate.py [--sizes 15m 125m 500m] [--concurrency 1 8 32] [--rounds 3] [--only TEXT ...]
        [--seconds 180] [--results FILE] [--peer-python PYTHON]

Each reads prompts of 128 tokens and writes 64 after each, greedily. Every contestant is a process of its own; they are
asked in turns, and medians over the rounds are compared, since machines are noisy. Prefill is how fast prompts are read
until all texts have their first token; decode, how fast all tokens after it come. Beside them stands what share they
are of what the machine can do: of the bandwidth at which it reads weights, and of its matrix products in the precision
(float16, whose weights alone are of 16 bits, has those of bfloat16 as its measure).

Contestants of one class (float32; 16, 8 or 4 bits; inputs of 4-bit weights have 8) are compared with each other alone.
"As float32" is of how many of eight texts the first token, and of how many all 24 tokens, are those that transformers
writes in float32: all of them where float32 is computed, but for near-ties, of which random weights have many. Who
gives no answer in `--seconds` is ended, and told so.

--only: those whose names contain one of the texts; --results: a JSON file to which what is found is added, and of which
all is shown, so that sizes and contestants can be measured one after the other (all at once do not fit into a small
machine at 500m). Peers that are not installed are left out; `generate_peers.py` says how to install them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from generate_peers import CLASSES, CONTESTANTS, SIZES, Failed, Worker, cores, hidden_weights, save

PROMPT, OUTPUT = 128, 64
CHECKED_TEXTS, CHECKED_TOKENS = 8, 24
TRUTH = "transformers generate float32"
Rates = tuple[float, float]
"""Prefill and decode, tokens per second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT")
    parser.add_argument("--seconds", type=float, default=180.0, help="most that an answer may take")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    asked = parser.parse_args()
    found = Results.read(asked.results)
    found.machine = {what: max(value, found.machine.get(what, 0.0)) for what, value in measured_machine().items()}
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as folder:
            save(size, Path(folder))
            for _ in compare(asked, Path(folder), found.sizes.setdefault(size, {})):
                found.write(asked.results)
        show(size, found)


@dataclass
class Found:
    """Of one contestant. rates: by concurrency, of each round; alike: checked texts that begin and that are as in
    float32."""

    rates: dict[int, list[Rates]] = field(default_factory=dict)
    alike: tuple[int, int] = (0, 0)

    def medians(self, counts: Sequence[int], part: int) -> dict[int, float]:
        """By concurrency, of prefill (0) or decode (1); not a number where nothing was measured."""
        return {
            count: statistics.median(one[part] for one in self.rates[count]) if self.rates.get(count) else math.nan
            for count in counts
        }


@dataclass
class Results:
    """machine: the best that was measured, bytes or operations a second; sizes: by size and name of the contestant."""

    machine: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, dict[str, Found]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path | None) -> Results:
        if file is None or not file.exists():
            return cls()
        kept = json.loads(file.read_text("utf-8"))
        sizes = {
            size: {
                name: Found(
                    {int(count): [(p, d) for p, d in rounds] for count, rounds in one["rates"].items()}, one["alike"]
                )
                for name, one in found.items()
            }
            for size, found in kept["sizes"].items()
        }
        return cls(kept["machine"], sizes)

    def write(self, file: Path | None) -> None:
        if file is not None:
            sizes = {size: {name: vars(one) for name, one in found.items()} for size, found in self.sizes.items()}
            file.write_text(json.dumps({"machine": self.machine, "sizes": sizes}, indent=1) + "\n", "utf-8")


# Measuring


def compare(asked: argparse.Namespace, folder: Path, found: dict[str, Found]) -> Iterator[int]:
    """Add the rates of all contestants that were asked for and that can take part, one concurrency after the other."""
    vocabulary = SIZES[(folder / "size").read_text()]["vocabulary"]
    draws = random.Random(0)
    checked = _prompts(draws, vocabulary, CHECKED_TEXTS)
    truth = _truth(folder, asked, checked)
    workers = _started(asked, folder, checked, truth, found)
    for concurrency in asked.concurrency:
        rounds: dict[str, list[Rates]] = {}
        for turn in range(asked.rounds):
            prompts = _prompts(draws, vocabulary, concurrency)
            for worker in list(workers):
                try:
                    rates = _rates(worker, prompts, asked.seconds, warm=turn == 0)
                except Failed as error:
                    print(f"{worker.name} at {concurrency}: ended: {error}", flush=True)
                    workers.remove(worker)
                    continue
                rounds.setdefault(worker.name, []).append(rates)
                print(f"  {worker.name} at {concurrency}: {rates[0]:,.0f} {rates[1]:,.0f}", file=sys.stderr)
        for name, rates_of in rounds.items():
            found.setdefault(name, Found()).rates[concurrency] = rates_of
        yield concurrency
    for worker in workers:
        worker.end()


def _prompts(draws: random.Random, vocabulary: int, count: int) -> list[list[int]]:
    return [[draws.randrange(8, vocabulary) for _ in range(PROMPT)] for _ in range(count)]


def _truth(folder: Path, asked: argparse.Namespace, prompts: list[list[int]]) -> list[list[int]]:
    worker = Worker.start(TRUTH, folder, sys.executable)
    try:
        worker.ask("ready", asked.seconds)
        return worker.written(prompts, CHECKED_TOKENS, asked.seconds)[1]
    finally:
        worker.end()


def _started(
    asked: argparse.Namespace,
    folder: Path,
    prompts: list[list[int]],
    truth: list[list[int]],
    found: dict[str, Found],
) -> list[Worker]:
    """Those that could be made ready and write texts of the right lengths."""
    workers = []
    for name, contestant in CONTESTANTS.items():
        if not any(text in name for text in asked.only):
            continue
        worker = Worker.start(name, folder, asked.peer_python if contestant.is_peer else sys.executable)
        try:
            ready = worker.ask("ready", asked.seconds)
            texts = worker.written(prompts, CHECKED_TOKENS, asked.seconds)[1]
        except Failed as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        first, whole = (
            sum(text[:end] == true[:end] for text, true in zip(texts, truth, strict=True)) for end in (1, None)
        )
        found.setdefault(name, Found()).alike = first, whole
        workers.append(worker)
        print(f"{name}: ready after {ready:.1f} s; of {len(truth)} texts {first} begin and {whole} are as in float32")
        if whole < len(truth) and contestant.precision == "float32":
            print(f"{name}: NOT THE SAME TEXTS, in the same precision")
    return workers


def _rates(worker: Worker, prompts: list[list[int]], seconds: float, *, warm: bool) -> Rates:
    """Failed where there is no right answer in time."""
    if warm:
        worker.written([prompt[:16] for prompt in prompts], 2, seconds)
    first, _ = worker.written(prompts, 1, seconds)
    whole, _ = worker.written(prompts, OUTPUT, seconds)
    if whole <= first:
        worker.end()
        raise Failed(f"{OUTPUT} tokens took {whole:.2f} s and the first {first:.2f} s: nothing was measured")
    return len(prompts) * PROMPT / first, len(prompts) * (OUTPUT - 1) / (whole - first)


def measured_machine() -> dict[str, float]:
    """Bytes a second that all cores read ("memory"), and operations a second of matrix products by class."""
    import torch

    torch.set_num_threads(cores())
    block = torch.ones(64 << 20)
    wide = torch.randn(2048, 2048)
    half, eighth = wide.bfloat16(), wide.to(torch.int8)
    operations = 2 * 2048**3
    whole = operations / _fastest(lambda: torch._int_mm(eighth, eighth))
    return {
        "memory": block.nbytes / _fastest(block.sum),
        "float32": operations / _fastest(lambda: wide @ wide),
        "16 bits": operations / _fastest(lambda: half @ half),
        "8 bits": whole,
        "4 bits": whole,
    }


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls."""
    taken = []
    for _ in range(8):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return min(taken)


# Showing


def show(size: str, results: Results) -> None:
    found, machine = results.sizes[size], results.machine
    weights = hidden_weights(size)
    counts = sorted({count for one in found.values() for count in one.rates})
    peaks = ", ".join(f"{name} {machine[name] / 1e9:,.0f} GFLOP/s" for name in CLASSES)
    print(f"\n{cores()} cores; memory {machine['memory'] / 1e9:.1f} GB/s read; {peaks}")
    print(f"{size}: {weights.all / 1e6:.1f} M weights; tokens/s at concurrency {', '.join(map(str, counts))}")
    for kind, precisions in CLASSES.items():
        names = [name for name in found if CONTESTANTS[name].precision in precisions]
        if not names:
            continue
        print(f"\n| {kind} | prefill | share of products | decode | share of memory | as float32: first token, text |")
        print("|---|---|---|---|---|---|")
        for name in names:
            prefill, decode = found[name].medians(counts, 0), found[name].medians(counts, 1)
            operations, read = 2 * weights.hidden, weights.all * CONTESTANTS[name].bytes
            columns = [
                _row(prefill, "{:,.0f}"),
                _row({count: rate * operations / machine[kind] for count, rate in prefill.items()}, "{:.0%}"),
                _row(decode, "{:,.0f}"),
                _row({count: rate / count * read / machine["memory"] for count, rate in decode.items()}, "{:.0%}"),
                " / ".join(map(str, found[name].alike)),
            ]
            print(f"| {name} | {' | '.join(columns)} |")
        _show_ratios({name: found[name] for name in names}, counts)
    sys.stdout.flush()


def _row(rates: Mapping[int, float], form: str) -> str:
    """At each concurrency; a dash where there is none."""
    return " / ".join("-" if math.isnan(rate) else form.format(rate) for rate in rates.values())


def _show_ratios(found: dict[str, Found], counts: Sequence[int]) -> None:
    """The best of ours over the best of the others."""
    for part, what in enumerate(("prefill", "decode")):
        ratios = []
        for count in counts:
            rates = {name: one.medians(counts, part)[count] for name, one in found.items()}
            rates = {name: rate for name, rate in rates.items() if not math.isnan(rate)}
            ours = [name for name in rates if name.startswith("fastserve")]
            peers = [name for name in rates if name not in ours]
            if ours and peers:
                best, peer = max(ours, key=rates.__getitem__), max(peers, key=rates.__getitem__)
                ratios.append(f"{rates[best] / rates[peer]:.2f} at {count} (over {peer})")
        if ratios:
            print(f"{what}, ours over the best peer: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
