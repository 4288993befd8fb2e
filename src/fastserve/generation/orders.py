"""What an engine is asked, what it answers, and how it is set up. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from fastserve.config import Auto, Positive, Section
from fastserve.generation.sampling import Sampling
from fastserve.generation.writing import FinishReason

GrammarKind = Literal["json_schema", "json_object", "regex", "choice"]
TOP_LOGPROBS = 20
"""The most alternatives that may be asked for each token, as the OpenAI API has it."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text must look like. text: a JSON schema, nothing, a regular expression, or a JSON list of strings."""

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """A prompt, and how it is to be gone on from.

    id: chosen by who asks, one at a time; prompt: token ids; priority: lower is served earlier, where the policy heeds
    it; key: who asks, for fairness and for whose prompts are remembered together; adapter: name of a LoRA adapter, or
    none; top_logprobs: how many of the most probable tokens are told with each.
    """

    id: str
    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    priority: int = 0
    key: str = ""
    adapter: str | None = None
    top_logprobs: int = 0
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A token of one of an order's texts, or the error that ended it.

    copy: of `Sampling.n`; token: -1 with an error; text: what can be shown since the last; logprob: natural logarithm
    of its probability under the network; top: the most probable tokens and their logprobs; cached: in the first of a
    text, how many tokens of the prompt were remembered and not read again.
    """

    id: str
    copy: int
    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached: int = 0

    @property
    def ends(self) -> bool:
        """Whether nothing more comes of this text."""
        return self.finish_reason is not None or self.error is not None


class EngineOptions(Section):
    """How an engine uses the machine."""

    policy: str = Field("boost", description="who is served first: boost, fcfs, priority, sj-mlfq or hrrn")
    slots: Positive | Auto = Field("auto", description="most texts that are written in one step")
    rows: Positive | Auto = Field("auto", description="most texts whose cache is kept in place, paused ones included")
    cache_tokens: Positive | Auto = Field(
        "auto", description="tokens whose keys and values are kept; auto: as many as half of the free memory takes"
    )
    chunk: Positive | Auto = Field(
        "auto", description="most tokens of prompts that are read in one step, between which texts go on"
    )
    block_size: Positive = Field(16, description="tokens of a block, in which the cache is counted and prefixes shared")
    tensor_parallel: Positive = Field(
        1, description="processes that share one network, each with its part of the weights and of the cache"
    )
    prefix_cache: bool = Field(True, description="whether a prompt's beginning that was read before is remembered")
    max_waiting_tokens: Positive = Field(
        65_536, description="tokens of waiting prompts and of what they may write; what is more is turned away"
    )
    precision: Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"] = Field(
        "auto",
        description="of the weights; float16 computes in float32; int8 and int4 round what is multiplied to 8 bits, "
        "too; int4 is for few texts at once",
    )
    loss_rise: Annotated[float, Field(gt=0)] = Field(
        0.02, description="share by which the loss on given texts may rise by the precision; above it that is refused"
    )
    profile_seconds: Annotated[float, Field(ge=0)] = Field(
        2.0, description="most that is spent at start on measuring how long steps take; 0: figures of another machine"
    )
    speculation: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="tokens guessed ahead from what was read before, where the text repeats itself; 0: none"
    )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Numbers of an engine: totals since it began, and how things stand (those without `_total`)."""

    requests_running: int = 0
    requests_waiting: int = 0
    requests_paused: int = 0
    requests_swapped: int = 0
    waiting_tokens: int = 0
    cache_usage: float = 0.0
    cached_blocks: int = 0
    blocks: int = 0
    steps_total: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    prefix_cache_queries_total: int = 0
    prefix_cache_hits_total: int = 0
    preemptions_total: int = 0
    swapped_tokens_total: int = 0
    recomputed_tokens_total: int = 0
    speculated_tokens_total: int = 0
    accepted_tokens_total: int = 0
    errors_total: int = 0
    cancelled_total: int = 0
    finished_total: int = 0
    levels: tuple[int, ...] = ()
