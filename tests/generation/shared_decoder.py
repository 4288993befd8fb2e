"""A process that has its share of a small decoder.

    python shared_decoder.py PORT RANK PROCESSES FORM TIED PRECISION [SECONDS]

The first one prints the logits after the prompt and what it wrote, and stays for so many seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time

import torch
import torch.distributed as dist

from fastserve.generation import parallel
from fastserve.generation.engine import Engine
from fastserve.generation.job import Job
from fastserve.generation.orders import EngineOptions, Order
from fastserve.generation.precision import Precision
from fastserve.generation.runner import Part, Runner
from fastserve.generation.sampling import Sampling
from fastserve.generation.step import Place, SwapIn, SwapOut
from fastserve.models.decoder import Decoder, DecoderOptions
from fastserve.models.network import NetworkShape
from fastserve.models.tensor_parallel import split

VOCABULARY, PROMPT, TOKENS = 61, [5, 9, 2, 40, 33, 7, 7, 18], 24
PROMPTS = [PROMPT[:length] for length in (3, 8, 5, 2, 7)]


def decoder(form: str, tied: bool) -> Decoder:
    torch.manual_seed(3)
    options = DecoderOptions(
        layers=2, dim=32, heads=8, key_value_heads=4, feedforward=48, context=64, form=form, tied=tied
    )
    network = Decoder(options, NetworkShape({"tokens": VOCABULARY}, VOCABULARY)).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.mul_(8)  # so that the next token is not a near tie
    return network


def greedy(runner: Runner, tokens: int) -> list[int]:
    """A prompt in two chunks, and then a token a step; half-way the text is swapped out and in again."""
    job = Job(1, len(PROMPT), tokens, 0.0)
    runner.move([Place(job, 2)])
    runner.read([Part(2, 0, PROMPT[:5], 0)])
    new, start, slot = PROMPT[5:], 5, 2
    written: list[int] = []
    while len(written) < tokens:
        logits = runner.read([Part(slot, start, new, 1)])
        start += len(new)
        new = [int(logits[-1].argmax())]
        written += new
        if len(written) == tokens // 2:
            runner.move([SwapOut(job, slot, start), SwapIn(job, 0, start)])
            slot = 0
    runner.forget(1)
    return written


def crowd(shared: parallel.SharedNetwork, precision: Precision) -> tuple[list[list[int]], int]:
    """What an engine writes where each text that comes is more important than those before it."""
    options = EngineOptions(
        precision=precision, policy="priority", slots=2, rows=3, cache_tokens=160, speculation=2, tensor_parallel=2
    )
    seconds = itertools.count()  # a second between two looks, so that every text has had its time
    engine = Engine(shared, None, options, clock=lambda: float(next(seconds)))
    texts: list[list[int]] = [[] for _ in PROMPTS]
    for step in itertools.count():
        if step % 4 == 0 and step // 4 < len(PROMPTS):
            sampling = Sampling(temperature=0, max_tokens=TOKENS)
            engine.add(Order(str(step // 4), PROMPTS[step // 4], sampling, priority=-step))
        for output in engine.step():
            assert output.error is None, output.error
            texts[int(output.id)].append(output.token)
        if not engine.has_work:
            return texts, engine.stats().preemptions_total
    raise AssertionError("unreachable")


def lead(share: Decoder, precision: Precision, seconds: float) -> None:
    shared = parallel.SharedNetwork(share)
    form = shared.form(precision, {})
    first = form.runner(1).read([Part(0, 0, PROMPT, 1)])
    written = greedy(form.runner(4), TOKENS)
    (plain,) = shared.greedy([PROMPT], TOKENS, eos=())
    texts, preemptions = crowd(shared, precision)
    told = {
        "logits": first[0].tolist(),
        "written": written,
        "plain": plain.ids,
        "bytes": shared.weight_bytes,
        "texts": texts,
        "preemptions": preemptions,
    }
    print(json.dumps(told), flush=True)
    time.sleep(seconds)
    shared.close()


def main() -> None:
    port, rank, processes, form, tied, precision, *seconds = sys.argv[1:]
    store = dist.TCPStore("127.0.0.1", int(port), is_master=rank == "0", wait_for_workers=False)
    parallel.join(store, int(rank), int(processes))
    share = split(decoder(form, tied == "tied"), int(rank), int(processes))
    if rank == "0":
        lead(share, precision, sum(map(float, seconds)))  # type: ignore[arg-type]
    else:
        parallel.follow(share)
        os._exit(0)


if __name__ == "__main__":
    main()
