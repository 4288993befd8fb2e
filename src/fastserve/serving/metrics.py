"""The Prometheus text of a board (text format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterator

from fastserve.serving import writing_metrics
from fastserve.serving.board import BUCKETS, STATUSES, Board

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "texts": ("texts_total", "Texts computed."),
    "tokens": ("tokens_total", "Padded tokens computed."),
    "batches": ("batches_total", "Batches computed."),
    "cancelled": ("cancelled_total", "Requests whose client left before the answer."),
    "swaps": ("version_swaps_total", "Times that a new version took over."),
    "refused": ("version_refusals_total", "New versions that failed to load or failed the parity gate."),
}
_GAUGES = {
    "waiting": ("waiting_requests", "Requests that wait for the model."),
    "waiting_tokens": ("waiting_tokens", "Tokens that wait for the model."),
    "ready": ("ready_workers", "Workers in which the model is ready."),
}


def render(board: Board) -> bytes:
    """What `/metrics` answers, summed over all workers."""
    return ("\n".join(_lines(board)) + "\n").encode("utf-8")


def _lines(board: Board) -> Iterator[str]:
    yield from _head("requests_total", "counter", "Answers by model (empty: no model's route) and status.")
    for model in board.models:
        for status in STATUSES:
            if count := board.total(model, str(status)):
                yield f'fastserve_requests_total{{model="{model}",status="{status}"}} {count}'
    yield from _histogram(board)
    for name, (metric, text) in _COUNTERS.items():
        yield from _head(metric, "counter", text)
        yield from _each_model(board, metric, name)
    yield from _head("compute_seconds_total", "counter", "Time spent in the model.")
    for model in board.models[1:]:
        yield f'fastserve_compute_seconds_total{{model="{model}"}} {board.total(model, "compute_nanoseconds") / 1e9}'
    for name, (metric, text) in _GAUGES.items():
        yield from _head(metric, "gauge", text)
        yield from _each_model(board, metric, name)
    yield from writing_metrics.lines(board)
    yield from _head("model_version", "gauge", "Version that each worker answers with (0: a folder without a number).")
    for model in board.models[1:]:
        for worker in range(board.workers):
            version = board.row(worker, model)["version"]
            yield f'fastserve_model_version{{model="{model}",worker="{worker}"}} {version}'
    yield from _head("connections", "gauge", "Open connections of each worker.")
    for worker in range(board.workers):
        yield f'fastserve_connections{{worker="{worker}"}} {board.row(worker, "")["connections"]}'
    yield from _head("workers", "gauge", "Worker processes that the server is meant to have.")
    yield f"fastserve_workers {board.workers}"
    yield from _head("worker_restarts_total", "counter", "Workers that were replaced after a crash or a hang.")
    yield f"fastserve_worker_restarts_total {board.restarts}"


def _head(metric: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP fastserve_{metric} {text}", f"# TYPE fastserve_{metric} {kind}"


def _each_model(board: Board, metric: str, name: str) -> Iterator[str]:
    for model in board.models[1:]:
        yield f'fastserve_{metric}{{model="{model}"}} {board.total(model, name)}'


def _histogram(board: Board) -> Iterator[str]:
    metric = "fastserve_request_seconds"
    yield from _head("request_seconds", "histogram", "Time from a request's headers to its answer.")
    for model in board.models:
        count = 0
        for bound in (*BUCKETS, "inf"):
            count += board.total(model, f"le_{bound}")
            shown = "+Inf" if bound == "inf" else bound
            yield f'{metric}_bucket{{model="{model}",le="{shown}"}} {count}'
        yield f'{metric}_sum{{model="{model}"}} {board.total(model, "nanoseconds") / 1e9}'
        yield f'{metric}_count{{model="{model}"}} {count}'
