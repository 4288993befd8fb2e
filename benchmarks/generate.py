"""Tokens per second of FastServe and its peers, writing with the same random weights on the same cores.

    python benchmarks/generate.py [--sizes 15m 125m 500m] [--concurrency 1 8 32] [--rounds 3] [--only NAME ...]
        [--peer-python PYTHON]

Each writes 64 tokens after prompts of 128, greedily. Every contestant is a process of its own that is asked in turns,
and medians over the rounds are compared, since machines are noisy. Prefill is how fast prompts are read until all texts
have their first token; decode, how fast all tokens after it come. Beside it stands what share of the memory's measured
bandwidth the weights took in decode. The peers live in a Python of their own, made by:

    python -m venv peers
    peers/bin/pip install openvino-genai "optimum-intel[openvino]" ctranslate2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PROMPT, OUTPUT = 128, 64
SIZES: dict[str, dict[str, Any]] = {
    "15m": {"layers": 8, "dim": 384, "context": 512, "vocabulary": 8_192},
    "125m": {"layers": 16, "dim": 768, "context": 2_048, "vocabulary": 32_768},
    "500m": {"layers": 26, "dim": 1_280, "context": 2_048, "vocabulary": 32_768},
}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
Write = Callable[[list[list[int]], int], int]
"""Prompts and how many tokens to write for each, to how many were written."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(asked.worker[0], Path(asked.worker[1]))
        return
    bandwidth = measured_bandwidth()
    print(f"memory: {bandwidth / 1e9:.1f} GB/s read; {cores()} cores", flush=True)
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as folder:
            weights = save(size, Path(folder))
            results = compare(asked, Path(folder), SIZES[size]["vocabulary"])
            show(size, weights, results, bandwidth, asked.concurrency)


# One size


@dataclass
class Worker:
    """A contestant's process, which answers a line with a line."""

    name: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, folder: Path, python: str) -> Worker:
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        command = [python, "-W", "ignore", __file__, "--worker", name, str(folder)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        return cls(name, process)

    def ask(self, question: Any) -> Any:
        """Its answer; None where it has ended."""
        try:
            _pipe(self.process.stdin).write(json.dumps(question) + "\n")
            _pipe(self.process.stdin).flush()
        except BrokenPipeError:
            return None
        for line in _pipe(self.process.stdout):
            if line.startswith('{"answer"'):
                return json.loads(line)["answer"]
        return None

    def end(self) -> str:
        """The last line that it complained with."""
        _, complaints = self.process.communicate()
        return next((line for line in reversed(complaints.splitlines()) if line.strip()), "")


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise ValueError("the process has no pipe")
    return pipe


Results = dict[str, dict[int, list[tuple[float, float]]]]
"""Contestant and concurrency to (prefill, decode) tokens per second of each round."""


def compare(asked: argparse.Namespace, folder: Path, vocabulary: int) -> Results:
    workers = []
    for name in asked.only:
        worker = Worker.start(name, folder, asked.peer_python if CONTESTANTS[name].is_peer else sys.executable)
        ready = worker.ask("ready")
        if ready is None:
            print(f"{name}: left out: {worker.end()}", flush=True)
        else:
            workers.append(worker)
            print(f"{name}: ready after {ready:.1f} s", flush=True)
    results: Results = defaultdict(lambda: defaultdict(list))
    draws = random.Random(0)
    for concurrency in asked.concurrency:
        for turn in range(asked.rounds):
            prompts = [[draws.randrange(8, vocabulary) for _ in range(PROMPT)] for _ in range(concurrency)]
            for worker in workers:
                found = rates(worker, prompts, warm=turn == 0)
                if found is not None:
                    results[worker.name][concurrency].append(found)
                    print(f"  {worker.name} at {concurrency}: {found[0]:,.0f} {found[1]:,.0f}", file=sys.stderr)
    for worker in workers:
        worker.end()
    return results


def rates(worker: Worker, prompts: list[list[int]], *, warm: bool) -> tuple[float, float] | None:
    if warm:
        worker.ask([prompts, 2])
    first, whole = worker.ask([prompts, 1]), worker.ask([prompts, OUTPUT])
    if first is None or whole is None or whole[1] != len(prompts) * OUTPUT:
        return None
    later = len(prompts) * (OUTPUT - 1)
    return len(prompts) * PROMPT / first[0], later / max(whole[0] - first[0], 1e-9)


def show(size: str, weights: int, results: Results, bandwidth: float, concurrency: Sequence[int]) -> None:
    print(f"\n{size}: {weights / 1e6:.1f} M weights; tokens/s at concurrency {', '.join(map(str, concurrency))}")
    print("| engine | prefill | decode | share of bandwidth |\n|---|---|---|---|")
    for name, found in results.items():
        read = weights * BYTES[CONTESTANTS[name].precision]
        medians = {
            count: [statistics.median(one[part] for one in rounds) for part in (0, 1)]
            for count, rounds in found.items()
        }
        columns = [
            " / ".join(f"{medians[count][part]:,.0f}" if count in medians else "-" for count in concurrency)
            for part in (0, 1)
        ]
        shares = " / ".join(
            f"{medians[count][1] / count * read / bandwidth:.0%}" if count in medians else "-" for count in concurrency
        )
        print(f"| {name} | {columns[0]} | {columns[1]} | {shares} |", flush=True)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def measured_bandwidth() -> float:
    """Bytes a second that all cores read."""
    import torch

    torch.set_num_threads(cores())
    block = torch.ones(64 << 20)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - begun)
    return block.nbytes / best


# The network


def options_of(size: str) -> tuple[dict[str, Any], int]:
    options = dict(SIZES[size])
    return options, options.pop("vocabulary")


def save(size: str, folder: Path) -> int:
    """A Hugging Face folder with random weights; how many."""
    import torch
    from safetensors.torch import save_file

    from fastserve.models.decoder import Decoder, DecoderOptions
    from fastserve.models.network import NetworkShape

    torch.manual_seed(0)
    options, vocabulary = options_of(size)
    network = Decoder(DecoderOptions(**options), NetworkShape({"tokens": vocabulary}, vocabulary))
    for name, content in network.files().items():
        (folder / name).write_text(content)
    (folder / "size").write_text(size)
    save_file(network.state_dict(), folder / "model.safetensors", {"format": "pt"})
    return sum(parameter.numel() for parameter in network.parameters())


# Contestants


def work(name: str, folder: Path) -> None:
    begun = time.perf_counter()
    write = CONTESTANTS[name].make(folder, CONTESTANTS[name].precision)
    for line in sys.stdin:
        question = json.loads(line)
        if question == "ready":
            answer: Any = time.perf_counter() - begun
        else:
            started = time.perf_counter()
            count = write(*question)
            answer = [time.perf_counter() - started, count]
        print("\n" + json.dumps({"answer": answer}), flush=True)


def fastserve(folder: Path, precision: str) -> Write:
    import torch
    from safetensors.torch import load_file

    from fastserve.generation.engine import Engine
    from fastserve.generation.orders import EngineOptions, Order
    from fastserve.generation.sampling import Sampling
    from fastserve.models.decoder import Decoder, DecoderOptions
    from fastserve.models.network import NetworkShape

    torch.set_num_threads(cores())
    options, vocabulary = options_of((folder / "size").read_text())
    network = Decoder(DecoderOptions(**options), NetworkShape({"tokens": vocabulary}, vocabulary))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.eval().requires_grad_(False)
    engine = Engine(network, None, EngineOptions(precision=precision, prefix_cache=False, speculation=0))
    engine.prepare()

    def write(prompts: list[list[int]], tokens: int) -> int:
        for place, prompt in enumerate(prompts):
            engine.add(Order(str(place), prompt, Sampling(temperature=0, max_tokens=tokens)))
        count = 0
        while engine.has_work:
            count += len(engine.step())
        return count

    return write


def _transformers(folder: Path, precision: str) -> Any:
    import torch
    import transformers

    torch.set_num_threads(cores())
    automatic: Any = transformers.AutoModelForCausalLM
    return automatic.from_pretrained(folder, dtype=getattr(torch, precision), attn_implementation="sdpa").eval()


def generate(folder: Path, precision: str) -> Write:
    import torch

    model = _transformers(folder, precision)

    def write(prompts: list[list[int]], tokens: int) -> int:
        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        found = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
        )
        return int(found[:, ids.shape[1] :].numel())

    return write


def continuous(folder: Path, precision: str) -> Write:
    from transformers import GenerationConfig

    model = _transformers(folder, precision)

    def write(prompts: list[list[int]], tokens: int) -> int:
        asked = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        found = model.generate_batch(inputs=prompts, generation_config=asked, progress_bar=False)
        return sum(len(one.generated_tokens) for one in found.values())

    return write


def openvino(folder: Path, precision: str) -> Write:
    import numpy as np
    import openvino_genai as genai
    from openvino import Tensor
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    rounded = OVWeightQuantizationConfig(bits=8) if precision == "int8" else None
    exported = folder / f"openvino-{precision}"
    model = OVModelForCausalLM.from_pretrained(folder, export=True, quantization_config=rounded, load_in_8bit=False)
    if rounded is None:
        model.half()
    model.save_pretrained(exported)
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(
        str(exported), scheduler_config=scheduler, device="CPU", tokenizer=_no_tokenizer(genai), properties={}
    )

    def write(prompts: list[list[int]], tokens: int) -> int:
        asked = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        ids = [Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        return sum(len(one.m_generation_ids[0]) for one in pipeline.generate(ids, [asked] * len(ids)))

    return write


def _no_tokenizer(genai: Any) -> Any:
    return genai.Tokenizer("", "", "", "")


def ctranslate2(folder: Path, precision: str) -> Write:
    import ctranslate2 as library
    import transformers
    from ctranslate2.converters import TransformersConverter

    exported = folder / "ctranslate2"
    if not exported.exists():
        tokens = {f"t{number}": number for number in range(options_of((folder / "size").read_text())[1])}
        transformers.PreTrainedTokenizerFast(tokenizer_object=_words(tokens), unk_token="t0").save_pretrained(folder)
        TransformersConverter(str(folder)).convert(str(exported))
    generator = library.Generator(str(exported), device="cpu", compute_type=precision, intra_threads=cores())

    def write(prompts: list[list[int]], tokens: int) -> int:
        words = [[f"t{number}" for number in prompt] for prompt in prompts]
        found = generator.generate_batch(
            words, max_length=tokens, min_length=tokens, include_prompt_in_result=False, beam_size=1
        )
        return sum(len(one.sequences_ids[0]) for one in found)

    return write


def _words(tokens: dict[str, int]) -> Any:
    import tokenizers

    return tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="t0"))


@dataclass(frozen=True)
class Contestant:
    make: Callable[[Path, str], Write]
    precision: str
    is_peer: bool = False
    """Whether it needs the peers' Python."""


CONTESTANTS = {
    "fastserve float32": Contestant(fastserve, "float32"),
    "fastserve float16": Contestant(fastserve, "float16"),
    "fastserve int8": Contestant(fastserve, "int8"),
    "transformers generate float32": Contestant(generate, "float32"),
    "transformers generate bfloat16": Contestant(generate, "bfloat16"),
    "transformers continuous batching float32": Contestant(continuous, "float32"),
    "openvino genai float16": Contestant(openvino, "float16", is_peer=True),
    "openvino genai int8": Contestant(openvino, "int8", is_peer=True),
    "ctranslate2 float32": Contestant(ctranslate2, "float32", is_peer=True),
    "ctranslate2 int8": Contestant(ctranslate2, "int8", is_peer=True),
}


if __name__ == "__main__":
    main()
