"""What `/metrics` says of models that write: under our names, and under those that dashboards for vLLM look for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastserve.serving.board import COMPLETION, FIRST_TOKEN, LEVELS, NEXT_TOKEN, SLOWDOWN, Board, Histogram

_COUNTERS = {
    "prompt_tokens_total": ("prompt_tokens_total", "Tokens of prompts.", "prompt_tokens_total"),
    "generation_tokens_total": ("generation_tokens_total", "Tokens written.", "generation_tokens_total"),
    "preemptions_total": ("preemptions_total", "Times that a text made room for another.", "num_preemptions_total"),
    "prefix_cache_queries_total": ("prefix_cache_queries_total", "Tokens looked up.", "prefix_cache_queries_total"),
    "prefix_cache_hits_total": ("prefix_cache_hits_total", "Tokens remembered, not read.", "prefix_cache_hits_total"),
    "recomputed_tokens_total": ("recomputed_tokens_total", "Tokens read again after a cache was dropped.", None),
    "swapped_tokens_total": ("swapped_tokens_total", "Tokens whose cache went to host memory.", None),
    "speculated_tokens_total": ("speculated_tokens_total", "Tokens guessed ahead.", None),
    "accepted_tokens_total": ("accepted_tokens_total", "Guessed tokens that were right.", None),
    "steps_total": ("engine_steps_total", "Steps of the engine.", None),
    "finished_error": ("failed_requests_total", "Requests that failed in the engine, or with it.", None),
    "engine_restarts": ("engine_restarts_total", "Times that the engine was started again.", None),
}
"""Field of the board: our name, what it says, vLLM's name."""
_GAUGES = {
    "requests_running": ("running_texts", "Texts in the step that is computed.", "num_requests_running"),
    "requests_waiting": ("waiting_texts", "Texts that have not begun.", "num_requests_waiting"),
    "requests_paused": ("paused_texts", "Texts that pause, their cache kept in place.", None),
    "requests_swapped": ("swapped_texts", "Texts that pause, their cache in host memory.", "num_requests_swapped"),
    "cached_blocks": ("cached_blocks", "Blocks of finished texts that are remembered.", None),
    "blocks": ("cache_blocks", "Blocks that the cache has.", None),
    "engine_up": ("engines_up", "Workers whose engine takes orders.", None),
}
_HISTOGRAMS = {
    FIRST_TOKEN: ("first_token_seconds", "Time to the first token.", ("time_to_first_token_seconds",)),
    NEXT_TOKEN: (
        "next_token_seconds",
        "Time between two tokens of a text.",
        ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    ),
    COMPLETION: ("completion_seconds", "Time to the whole answer.", ("e2e_request_latency_seconds",)),
    SLOWDOWN: ("slowdown", "Time to the whole answer, as a multiple of what it would take alone.", ()),
}
_MILLION = 1e6


def lines(board: Board) -> Iterator[str]:
    """Nothing where no model writes."""
    models = [model for model in board.models[1:] if board.total(model, "writes")]
    if not models:
        return
    for table, kind in ((_COUNTERS, "counter"), (_GAUGES, "gauge")):
        for field, (name, text, alias) in table.items():
            values = {model: float(board.total(model, field)) for model in models}
            yield from _values(f"fastserve_{name}", kind, text, values)
            if alias is not None:
                yield from _values(f"vllm:{alias}", kind, text, values)
    yield from _usage(board, models)
    yield from _levels(board, models)
    yield from _reasons(board, models)
    for histogram, (name, text, aliases) in _HISTOGRAMS.items():
        for metric in (f"fastserve_{name}", *(f"vllm:{alias}" for alias in aliases)):
            yield from _histogram(board, models, histogram, metric, text)


def _head(metric: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {metric} {text}", f"# TYPE {metric} {kind}"


def _labels(metric: str, model: str) -> str:
    return f'model_name="{model}",engine="0"' if metric.startswith("vllm:") else f'model="{model}"'


def _values(metric: str, kind: str, text: str, values: dict[str, float]) -> Iterator[str]:
    yield from _head(metric, kind, text)
    for model, value in values.items():
        yield (
            f"{metric}{{{_labels(metric, model)}}} {value:g}"
            if kind == "gauge"
            else (f"{metric}{{{_labels(metric, model)}}} {int(value)}")
        )


def _usage(board: Board, models: Iterable[str]) -> Iterator[str]:
    """Of all workers' engines the mean."""
    text = "Share of the cache's blocks that texts hold."
    usage = {}
    for model in models:
        rows = [row for worker in range(board.workers) if (row := board.row(worker, model))["writes"]]
        usage[model] = sum(row["cache_usage_millionths"] for row in rows) / (_MILLION * max(len(rows), 1))
    for metric in ("fastserve_cache_usage", "vllm:kv_cache_usage_perc"):
        yield from _values(metric, "gauge", text, usage)


def _levels(board: Board, models: Iterable[str]) -> Iterator[str]:
    yield from _head("fastserve_level_texts", "gauge", "Texts in each level of a policy that has levels.")
    for model in models:
        for level in range(LEVELS):
            yield f'fastserve_level_texts{{model="{model}",level="{level}"}} {board.total(model, f"level_{level}")}'


def _reasons(board: Board, models: Iterable[str]) -> Iterator[str]:
    for metric in ("fastserve_finished_texts_total", "vllm:request_success_total"):
        yield from _head(metric, "counter", "Texts that ended, by what ended them.")
        for model in models:
            for reason in ("stop", "length"):
                value = board.total(model, f"finished_{reason}")
                yield f'{metric}{{{_labels(metric, model)},finished_reason="{reason}"}} {value}'


def _histogram(board: Board, models: Iterable[str], histogram: Histogram, metric: str, text: str) -> Iterator[str]:
    yield from _head(metric, "histogram", text)
    for model in models:
        labels, count = _labels(metric, model), 0
        for field, bound in zip(histogram.fields, (*histogram.bounds, "+Inf"), strict=False):
            count += board.total(model, field)
            yield f'{metric}_bucket{{{labels},le="{bound}"}} {count}'
        yield f"{metric}_sum{{{labels}}} {board.total(model, histogram.fields[-1]) / _MILLION}"
        yield f"{metric}_count{{{labels}}} {count}"
