"""Many texts at once: each step reads some tokens of some of them and gives those that were chosen.

    engine.add(order) ; engine.cancel(id) ; outputs = engine.step()

Who takes part in a step is the scheduler's decision; what the network makes of it the runner's. All calls come from one
thread.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, count
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fastserve.errors import ConfigError, FastServeError, NotFoundError, Overloaded, choices
from fastserve.generation.choice import Choice, Wish, choose_each
from fastserve.generation.grammar import Grammars
from fastserve.generation.job import Job
from fastserve.generation.orders import TOP_LOGPROBS, EngineOptions, EngineStats, Order, Output
from fastserve.generation.precision import check_loss
from fastserve.generation.runner import Part, Runner
from fastserve.generation.scheduler import Scheduler
from fastserve.generation.setup import Setup
from fastserve.generation.speculation import Lookup
from fastserve.generation.step import Place, Step
from fastserve.generation.text import Blocks, Text
from fastserve.generation.writing import Writing
from fastserve.models.causal import CausalNetwork

if TYPE_CHECKING:
    from fastserve.text.language_tokenizer import LanguageTokenizer

logger = logging.getLogger(__name__)


class Engine:
    """network: in evaluation mode; eos: ids that end a text; tokenizer: for text and stop strings; adapters: folders of
    LoRA adapters by name; clock: seconds."""

    def __init__(
        self,
        network: CausalNetwork,
        tokenizer: LanguageTokenizer | None = None,
        options: EngineOptions | None = None,
        *,
        eos: Collection[int] = (),
        adapters: Mapping[str, Path] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.network, self.tokenizer, self.eos, self.clock = network, tokenizer, frozenset(eos), clock
        self.options = options or EngineOptions()
        self.adapters = dict(adapters or {})
        self._texts: dict[int, Text] = {}
        self._orders: dict[str, list[Text]] = {}
        self._numbers = count()
        self._errors = self._hits = self._asked = self._guessed = self._right = 0

    @cached_property
    def _setup(self) -> Setup:
        return Setup(self.network, self.options, self.adapters)

    @cached_property
    def scheduler(self) -> Scheduler:
        return self._setup.scheduler()

    @cached_property
    def runner(self) -> Runner:
        return self._setup.runner(self.scheduler.limits.rows, self.scheduler.cache)

    @cached_property
    def _grammars(self) -> Grammars:
        if self.tokenizer is None:
            raise ConfigError("a text with a grammar needs a tokenizer: give the engine one")
        return Grammars(self.tokenizer, self._setup.vocabulary, self.eos)

    @property
    def precision(self) -> str:
        """What is decoded in."""
        return self._setup.precision

    def check_loss(self, rows: Sequence[Sequence[int]]) -> float:
        """By what share the precision raises the loss on these rows of tokens. ConfigError where that is too much."""
        return check_loss(self.network, self._setup.fast, rows, self.options.loss_rise)

    def prepare(self) -> None:
        """Do now what the first order would have to wait for."""
        self.runner.warm(self.scheduler.limits.slots)

    # Orders

    def add(self, order: Order) -> None:
        """Take an order, whose texts come out of `step` from now on.

        DataError for a prompt that cannot be gone on from, ConfigError for a wish that cannot be kept, Overloaded where
        too much waits already; then nothing was added.
        """
        self._check(order)
        texts = self._texts_of(order)
        for text in texts:
            try:
                self.scheduler.add(text.job)
            except Overloaded as error:
                self._remove(texts)
                raise Overloaded(f"too much waits already: {error}", error.retry_after) from None
            except FastServeError:
                self._remove(texts)
                raise
            self._texts[text.job.id] = text
        self._orders[order.id] = texts

    def _check(self, order: Order) -> None:
        if order.id in self._orders:
            raise ConfigError(f"order '{order.id}' is being written already: give each an id of its own")
        if not 0 <= order.top_logprobs <= TOP_LOGPROBS:
            raise ConfigError(f"top_logprobs = {order.top_logprobs}: expected 0 to {TOP_LOGPROBS}")
        if order.adapter is not None and order.adapter not in self.adapters:
            raise NotFoundError(f"no adapter is called '{order.adapter}': {choices(order.adapter, self.adapters)}")
        vocabulary = self._setup.vocabulary
        for kind, ids in (("prompt", order.prompt), ("logit_bias", order.sampling.logit_bias)):
            wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
            if wrong is not None:
                raise ConfigError(f"the {kind} has the token {wrong}: expected ids from 0 to {vocabulary - 1:,}")

    def _texts_of(self, order: Order) -> list[Text]:
        texts: list[Text] = []
        for copy in range(order.sampling.n):
            writing = Writing(
                order.prompt,
                order.sampling,
                copy=copy,
                eos=self.eos,
                longest=self.network.longest,
                tokenizer=self.tokenizer,
            )
            blocks = Blocks(self.options.block_size, f"{order.key}\0{order.adapter or ''}")
            if self.options.prefix_cache:
                blocks.extend(order.prompt)
            follows = texts[0].job.id if texts else None
            follower = None if order.grammar is None else self._grammars.follow(order.grammar)
            lookup = Lookup(order.prompt) if self._setup.drafts and follower is None else None
            job = self._job(order, writing, blocks, follows)
            texts.append(Text(order, copy, job, writing, blocks, follower, lookup))
        return texts

    def _job(self, order: Order, writing: Writing, blocks: Blocks, follows: int | None) -> Job:
        return Job(
            next(self._numbers),
            len(order.prompt),
            writing.most,
            self.clock(),
            order.priority,
            order.key,
            blocks.hashes,
            follows,
        )

    def cancel(self, order: str) -> None:
        """Nothing more comes of an order, and all that it held is free for the next step. Unknown ones are ignored."""
        self._remove(self._orders.pop(order, ()))

    def _remove(self, texts: Iterable[Text]) -> None:
        for text in texts:
            self.scheduler.cancel(text.job.id)
            self._forget(text)

    def _forget(self, text: Text) -> None:
        self._texts.pop(text.job.id, None)
        self.runner.forget(text.job.id)
        texts = self._orders.get(text.order.id, [])
        if text in texts:
            texts.remove(text)
            if not texts:
                del self._orders[text.order.id]

    # Steps

    @property
    def has_work(self) -> bool:
        return bool(self._texts)

    def step(self) -> list[Output]:
        """One forward pass, and the tokens that were chosen after it; nothing where there is nothing to do."""
        begun = self.clock()
        step = self.scheduler.plan(begun)
        if step is None:
            return []
        slots = {work.job.id: work.job.slot or 0 for work in step.works}
        outputs, written = self._compute(step, slots)
        ended = {text.job.id for text in self._works(step) if text.writing.finish_reason is not None}
        now = self.clock()
        self.scheduler.done(step, now - begun, now=now, sampled=written, ended=ended)
        for text in self._works(step):
            if text.job.id in ended:
                self._forget(text)
        return outputs

    def _works(self, step: Step) -> list[Text]:
        return [self._texts[work.job.id] for work in step.works if work.job.id in self._texts]

    def _compute(self, step: Step, slots: dict[int, int]) -> tuple[list[Output], dict[int, int]]:
        """What is given out, and how many tokens each job wrote."""
        self._guess(step)
        try:
            self._move(step)
            logits = self.runner.read(self._parts(step, slots))
        except Exception as error:
            logger.exception("a step of %d texts failed", len(step.works))
            return [self._fail(text, slots, str(error) or type(error).__name__) for text in self._works(step)], {}
        return self._choose([self._texts[work.job.id] for work in step.works if work.samples], logits, slots)

    def _guess(self, step: Step) -> None:
        """What may follow, for texts that decode, where the machine gains by it."""
        cost, drafts = self.scheduler.outlook.cost, self._setup.drafts
        worth = cost.share(max(step.decode, 1))
        for work in step.works:
            text = self._texts[work.job.id]
            text.guesses = ()
            if not drafts or text.lookup is None or work.count > 1 or not work.samples:
                continue
            if self.options.speculation != "auto" or text.lookup.share * worth > cost.prompt_token:
                left = text.writing.most - len(text.writing.written) - 1
                text.guesses = text.lookup.guess(min(drafts, left))

    def _move(self, step: Step) -> None:
        self.runner.move(step.moves)
        for move in step.moves:
            text = self._texts[move.job.id]
            if isinstance(move, Place) and not text.told:
                text.cached = min(move.copied, len(text.order.prompt))
                self._asked += len(text.order.prompt)
                self._hits += text.cached

    def _parts(self, step: Step, slots: dict[int, int]) -> list[Part]:
        return [
            Part(
                slots[work.job.id],
                work.start,
                [*self._texts[work.job.id].ids(work.start, work.count), *self._texts[work.job.id].guesses],
                int(work.samples) + len(self._texts[work.job.id].guesses),
                self._texts[work.job.id].order.adapter,
            )
            for work in step.works
        ]

    def _choose(
        self, texts: Sequence[Text], logits: Tensor, slots: dict[int, int]
    ) -> tuple[list[Output], dict[int, int]]:
        """logits: one row for each text, and one for each of its guesses, of which those are kept that are chosen."""
        starts = list(accumulate((1 + len(text.guesses) for text in texts), initial=0))[:-1]
        going = list(zip(texts, starts, strict=True))
        outputs: list[Output] = []
        written: Counter[int] = Counter()
        while going:
            rows = [start + written[text.job.id] for text, start in going]
            same = rows == list(range(len(logits)))
            wishes = [Wish(one.writing.row, one.order.top_logprobs, one.follower) for one, _ in going]
            found = choose_each(logits if same else logits[rows], wishes)
            for (text, _), one in zip(going, found, strict=True):
                outputs.append(self._take(text, one) if isinstance(one, Choice) else self._fail(text, slots, one))
                written[text.job.id] += 1
            going = [
                (text, start)
                for (text, start), one in zip(going, outputs[-len(going) :], strict=True)
                if not one.ends and text.guesses[written[text.job.id] - 1 : written[text.job.id]] == [one.token]
            ]
        self._judge(texts, written, slots)
        return outputs, written

    def _judge(self, texts: Sequence[Text], written: Mapping[int, int], slots: dict[int, int]) -> None:
        """Forget what was guessed wrong."""
        for text in texts:
            guessed, right = len(text.guesses), written[text.job.id] - 1
            self._guessed += guessed
            self._right += right
            if text.lookup is not None:
                text.lookup.judge(guessed, right)
            if guessed and text.job.id in self._texts:
                cache, slot = self.runner.cache, slots[text.job.id]
                cache.keep(slot, cache.lengths[slot] - guessed + right)

    def _take(self, text: Text, chosen: Choice) -> Output:
        piece = text.writing.take(chosen.token, chosen.logprob)
        if self.options.prefix_cache:
            text.blocks.extend([chosen.token])
        if text.lookup is not None:
            text.lookup.extend([chosen.token])
        first, text.told = not text.told, True
        return Output(
            text.order.id,
            text.copy,
            piece.id,
            piece.text,
            piece.logprob,
            chosen.top,
            piece.finish_reason,
            cached=text.cached if first else 0,
        )

    def _fail(self, text: Text, slots: dict[int, int], why: str) -> Output:
        """A text ends by an error, and leaves nothing behind that could harm another."""
        self._errors += 1
        text.job.prefix = ()
        self.scheduler.cache.forget(text.job)
        self.runner.clear(slots[text.job.id])
        self.scheduler.cancel(text.job.id)
        self._forget(text)
        return Output(text.order.id, text.copy, -1, "", 0.0, error=why)

    # How things stand

    def stats(self) -> EngineStats:
        scheduler, totals = self.scheduler, self.scheduler.counts
        levels = scheduler.levels()
        blocks = scheduler.limits.blocks
        return EngineStats(
            requests_running=len(scheduler.running),
            requests_waiting=scheduler.waiting.count,
            requests_swapped=self.runner.swapped,
            requests_paused=max(scheduler.ready.count - self.runner.swapped, 0),
            waiting_tokens=scheduler.waiting_tokens,
            cache_usage=scheduler.cache.used_share,
            cached_blocks=scheduler.cache.left_blocks,
            blocks=blocks,
            steps_total=totals.steps,
            prompt_tokens_total=totals.prompt_tokens,
            generation_tokens_total=totals.written_tokens,
            prefix_cache_queries_total=self._asked,
            prefix_cache_hits_total=self._hits,
            preemptions_total=totals.preemptions,
            swapped_tokens_total=totals.swapped_tokens,
            recomputed_tokens_total=totals.recomputed_tokens,
            speculated_tokens_total=self._guessed,
            accepted_tokens_total=self._right,
            errors_total=self._errors,
            cancelled_total=totals.cancelled,
            finished_total=totals.finished,
            levels=tuple(levels.get(level, 0) for level in range(max(levels, default=-1) + 1)),
        )
