"""How long steps of a network take on this machine, measured when an engine starts: what the scheduler weighs by."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count

import numpy as np

from fastserve.generation.choice import Choice, Wish, choose_each
from fastserve.generation.job import Job
from fastserve.generation.limits import Limits
from fastserve.generation.runner import Part, Runner
from fastserve.generation.sampling import Sampling
from fastserve.generation.scheduler import Scheduler
from fastserve.generation.step import Step, SwapIn, SwapOut, Work
from fastserve.generation.step_cost import SMALL_DECODER, StepCost
from fastserve.generation.writing import Writing

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 2.0
"""Most that is spent on measuring."""
SHORT, LONG = 4, 256
"""Tokens of caches, on average, that are measured; LONG at most."""
BESIDE = 16
"""Jobs, at most, with long caches."""
PROMPTS = (16, 128, 512)
"""Tokens of prompts that are measured; where steps are slow only the last of the longest, as many as the middle has."""
SLOW = 0.02
STEPS = 3
"""Made one after the other, where they are not slow: the first of them is cold as hardly any is in a run."""
LEAST = 1e-9
"""Seconds that anything is taken for at least."""
_NEVER = 1 << 20
_TEXT = 64
_SPARE = 1 + STEPS + 3 * len(PROMPTS)
"""Tokens that a text goes on by in a turn: where it comes, long steps, and around each prompt that is read."""
SHORTEST = 2 * _SPARE
"""Tokens of a context in which steps can be measured so."""


def profile(runner: Runner, slots: int, *, seconds: float = SECONDS) -> StepCost:
    """Steps of up to `slots` texts, for which the runner has room. What there was no time for is taken to go on as
    before. Of the runner's cache nothing is of use afterwards. A network of a very short context is not measured."""
    if runner.network.longest < SHORTEST:
        return SMALL_DECODER
    end = time.perf_counter() + seconds
    measuring = Measuring(runner, slots, seconds=seconds / 2)
    measuring.turn()
    while time.perf_counter() < end:
        measuring.turn()
    return measuring.cost()


@dataclass(frozen=True, slots=True)
class Sample:
    """How long a step with these numbers (`Step`) took."""

    decode: int
    prompt: int
    cached: int
    pairs: int
    seconds: float


class Bench:
    """Texts in an engine of the simplest kind, whose steps are measured. What makes a text long was never computed."""

    def __init__(self, runner: Runner, slots: int) -> None:
        self.runner, self.longest = runner, runner.network.longest
        room = slots * (self.longest + 2 * _TEXT)
        limits = Limits(slots, slots, blocks=room, block_size=1, chunk=_NEVER)
        self._scheduler = Scheduler.create("fcfs", limits, SMALL_DECODER)
        self._scheduler.batch = slots
        self._texts: dict[int, Writing] = {}
        self._numbers = count()

    def fill(self, jobs: int, cached: int) -> None:
        """So many texts, of so many tokens on average, spread as waiting times are: each has written one token."""
        for number in list(self._texts):
            self._end(number)
        for place in range(jobs):
            self._add(round(-math.log(1 - (place + 0.5) / jobs) * cached))
        self._pretend()

    def read(self, tokens: int, start: int) -> None:
        """A text comes in the place of the first one, of which all but the first `start` tokens have to be read."""
        self._end(next(iter(self._texts)))
        job = self._add(start + tokens - 1)
        self._pretend()
        job.computed = start

    def _add(self, tokens: int) -> Job:
        number, tokens = next(self._numbers), max(min(tokens, self.longest - _SPARE), 1)
        self._texts[number] = Writing([1] * tokens, Sampling(), eos=(), longest=self.longest)
        job = Job(number, tokens, _TEXT, 0.0)
        self._scheduler.add(job)
        return job

    def _end(self, number: int) -> None:
        del self._texts[number]
        self._scheduler.cancel(number)

    def _pretend(self) -> None:
        """A step of which nothing is computed."""
        step = self._plan()
        for work in step.works:
            self._texts[work.job.id].take(1, 0.0)
        self._scheduler.done(step, 0.0, now=0.0)

    def _plan(self) -> Step:
        step = self._scheduler.plan(0.0)
        if step is None:
            raise RuntimeError("there is no text to measure a step with")
        self.runner.move(step.moves)
        return step

    def step(self) -> Sample:
        """What an engine does for a step."""
        begun = time.perf_counter()
        step = self._plan()
        texts = [self._texts[work.job.id] for work in step.works]
        parts = [
            Part(work.job.slot or 0, work.start, _ids(text, work), 1)
            for work, text in zip(step.works, texts, strict=True)
        ]
        chosen = choose_each(self.runner.read(parts), [Wish(text.row) for text in texts])
        for text, choice in zip(texts, chosen, strict=True):
            if isinstance(choice, Choice):
                text.take(choice.token, choice.logprob)
        self._scheduler.done(step, 0.0, now=0.0)
        return Sample(step.decode, step.prompt, step.cached, step.pairs, time.perf_counter() - begun)

    def swap(self) -> Sample:
        """The cache of the longest text goes to host memory and comes back."""
        *_, job = self._scheduler.jobs.values()
        slot, tokens = job.slot or 0, job.computed
        begun = time.perf_counter()
        self.runner.move([SwapOut(job, slot, tokens), SwapIn(job, slot, tokens)])
        return Sample(0, 0, 2 * tokens, 0, time.perf_counter() - begun)


def _ids(text: Writing, work: Work) -> Sequence[int]:
    return text.written[-1:] if work.count == 1 else [*text.row.prompt, *text.written][work.start :]


class Measuring:
    """Whole steps, planning and choosing included; each turn measures all kinds, so that a machine that is slow for a
    while is so for all. Of each kind the median counts, but all are raised by what the mean of all times is above that:
    a run is as long as the mean.

    seconds: that may be spent on getting to know how large batches can be.
    """

    def __init__(self, runner: Runner, slots: int, *, seconds: float = SECONDS / 2) -> None:
        self._bench = Bench(runner, slots)
        self._times: defaultdict[str, list[Sample]] = defaultdict(list)
        self._sizes = self._tried(slots, time.perf_counter() + seconds)
        self._is_slow = self._bench.step().seconds > SLOW
        self._beside = max(size for size in self._sizes if size <= BESIDE)

    def _tried(self, slots: int, end: float) -> list[int]:
        """Batches that there is time to measure; the first time takes longer and does not count."""
        sizes: list[int] = []
        for size in BATCHES:
            if size > slots or (len(sizes) >= 2 and time.perf_counter() > end):
                break
            self._bench.fill(size, SHORT)
            self._bench.step()
            sizes.append(size)
        return sizes

    def turn(self) -> None:
        """Each kind of step."""
        for size in self._sizes:
            self._bench.fill(size, SHORT)
            self._steps(f"short {size}")
        self._bench.fill(self._beside, min(LONG, self._bench.longest // 4))
        self._steps("long")
        self._times["swap"].append(self._bench.swap())
        for kind, (tokens, start) in self._prompts().items():
            self._bench.read(tokens, start)
            self._times[kind].append(self._bench.step())
            self._times["after"].append(self._bench.step())

    def _steps(self, kind: str) -> None:
        taken = [self._bench.step() for _ in range(1 if self._is_slow else STEPS)]
        self._times[kind] += taken[1:] or taken

    def _prompts(self) -> dict[str, tuple[int, int]]:
        """How many tokens are read, and after how many that were."""
        longest = min(PROMPTS[-1], self._bench.longest - _SPARE)
        few, some = (max(longest * tokens // PROMPTS[-1], 2) for tokens in PROMPTS[:-1])
        return {"few": (few, 0), "some": (some, 0), "many": (some, longest - some) if self._is_slow else (longest, 0)}

    def cost(self) -> StepCost:
        """By all turns so far, of which there must be one."""
        found, sizes = self._typical(), self._sizes
        short, long, swap = found[f"short {self._beside}"], found["long"], found["swap"]
        cached = max(long.seconds - short.seconds, 0.0) / max(long.cached - short.cached, 1)
        alone = (found[f"short {size}"] for size in sizes)
        seconds = list(accumulate((max(one.seconds - cached * one.cached, LEAST) for one in alone), max))
        if len(sizes) == 1:
            sizes, seconds = [1, 2], [seconds[0], 2 * seconds[0]]
        cost = StepCost(tuple(sizes), tuple(seconds), LEAST, cached, swap.seconds / swap.cached, "measured at start")
        cost = _with_prompts(cost, [found[kind] for kind in self._prompts()])
        after = found["after"]  # rows are moved in this step too, because of the prompt before
        moving = max(after.seconds - cost.step(after.decode, 0, after.cached), 0.0)
        return replace(cost, prompt_start=cost.prompt_start + moving)

    def _typical(self) -> dict[str, Sample]:
        """Of each kind the one in the middle, raised; first times are left out."""
        kept = {kind: taken[1:] or taken for kind, taken in self._times.items()}
        middle = {kind: sorted(taken, key=lambda one: one.seconds)[len(taken) // 2] for kind, taken in kept.items()}
        total = sum(one.seconds for taken in kept.values() for one in taken)
        level = total / sum(middle[kind].seconds * len(taken) for kind, taken in kept.items())
        return {kind: replace(one, seconds=level * one.seconds) for kind, one in middle.items()}


def _with_prompts(cost: StepCost, samples: Sequence[Sample]) -> StepCost:
    """What prompts took tells what each takes, a token of it, and each token that one attends to. What would be
    negative is 0, and the others say it all."""
    seconds = np.array([one.seconds - cost.step(one.decode, 0, one.cached) for one in samples])
    numbers = np.array([[one.prompt, one.pairs, 1.0] for one in samples])
    kept = [0, 1, 2]
    while True:
        found = np.linalg.lstsq(numbers[:, kept], seconds, rcond=None)[0]
        if found.min() >= 0 or len(kept) == 1:
            break
        del kept[-1 if found[-1] < 0 else -2]
    token, pair, start = (max(float(found[kept.index(one)]), 0.0) if one in kept else 0.0 for one in range(3))
    return replace(cost, prompt_token=max(token, LEAST), prompt_pair=pair, prompt_start=start)
