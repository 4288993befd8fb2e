"""A simulated run in numbers: how long requests took, short and long ones apart, and what it cost. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastserve.generation.simulator import Outcome, Times

TIMES = {"first": "first token, s", "completion": "completion, s", "slowdown": "slowdown"}
LONG_SHARE = 0.1


def figures(outcome: Outcome) -> dict[str, Any]:
    """Mean, median and 99th percentile of each of TIMES, of all requests, of the shorter half and of the longest tenth.

    Short and long are told by how many seconds a request takes alone. Throughput is prompt and written tokens for each
    second in which steps were computed.
    """
    served = ~np.isnan(outcome.completion)
    counts = outcome.counts
    middle, long = np.quantile(outcome.alone, [0.5, 1 - LONG_SHARE])
    return {
        "requests": len(served),
        "refused": counts.refused,
        "all": _times(outcome, served),
        "short": _times(outcome, served & (outcome.alone <= middle)),
        "long": _times(outcome, served & (outcome.alone >= long)),
        "preemptions": counts.preemptions,
        "preempted_requests": int((outcome.preemptions > 0).sum()),
        "recomputed_tokens": counts.recomputed_tokens,
        "swapped_tokens": counts.swapped_tokens,
        "tokens_per_second": outcome.tokens / outcome.busy if not counts.refused else None,
        "seconds": outcome.seconds,
        "busy_seconds": outcome.busy,
        "steps": counts.steps,
    }


def _times(outcome: Outcome, which: Times) -> dict[str, Any]:
    return {"requests": int(which.sum())} | {name: _spread(getattr(outcome, name)[which]) for name in TIMES}


def _spread(values: Times) -> dict[str, float] | None:
    if not len(values):
        return None
    median, late = np.quantile(values, [0.5, 0.99])
    return {"mean": float(values.mean()), "p50": float(median), "p99": float(late)}


def figures_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Policies to their figures, as a table for each group of requests."""
    lines = []
    for group, title in (("all", "all requests"), ("short", "the shorter half"), ("long", "the longest tenth")):
        lines += ["", f"{title:18}" + "".join(f"{heading:>30}" for heading in TIMES.values())]
        lines += [f"{'':18}" + f"{'mean':>12}{'p50':>9}{'p99':>9}" * len(TIMES)]
        for policy, values in found.items():
            lines.append(f"{policy:18}" + "".join(_cells(values[group][name]) for name in TIMES))
    lines += ["", f"{'':18}{'preemptions':>14}{'recomputed':>14}{'swapped':>14}{'tokens/s':>12}{'refused':>10}"]
    for policy, values in found.items():
        speed = values["tokens_per_second"]
        lines.append(
            f"{policy:18}{values['preemptions']:>14,}{values['recomputed_tokens']:>14,}{values['swapped_tokens']:>14,}"
            f"{'' if speed is None else format(speed, ',.0f'):>12}{values['refused']:>10,}"
        )
    return "\n".join(lines[1:])


def _cells(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return f"{'none':>30}"
    return "".join(f"{spread[name]:>{width},.2f}" for name, width in (("mean", 12), ("p50", 9), ("p99", 9)))
