"""A process that has its share of a small decoder.

    python shared_decoder.py ADDRESS RANK PROCESSES FORM TIED [SECONDS]

The first one prints what it wrote, and stays for so many seconds.
"""

from __future__ import annotations

import json
import sys
import time

import torch
import torch.distributed as dist

from fastserve.generation import parallel
from fastserve.generation.job import Job
from fastserve.generation.runner import Part, Runner
from fastserve.generation.step import Place, SwapIn, SwapOut
from fastserve.models.decoder import Decoder, DecoderOptions
from fastserve.models.network import NetworkShape
from fastserve.models.tensor_parallel import split

VOCABULARY, PROMPT, TOKENS = 61, [5, 9, 2, 40, 33, 7, 7, 18], 24


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


def main() -> None:
    address, rank, processes, form, tied, *seconds = sys.argv[1:]
    parallel.join(address, int(rank), int(processes))
    network = split(decoder(form, tied == "tied"), int(rank), int(processes))
    if rank == "0":
        runner = parallel.LeadingRunner(network, 4)
        print(json.dumps(greedy(runner, TOKENS)), flush=True)
        time.sleep(sum(map(float, seconds)))
        runner.close()
    else:
        parallel.follow(Runner(network, 4))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
