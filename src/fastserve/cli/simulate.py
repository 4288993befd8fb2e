"""`fastserve simulate`: a recorded hour of requests under a scheduling policy, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastserve.cli.main import json_option, show
from fastserve.errors import ConfigError


@click.command()
@click.argument("trace")
@click.option("--policy", default="boost", show_default=True, help="fcfs, priority, sj-mlfq, hrrn, boost, or your own.")
@click.option("--compare", multiple=True, metavar="POLICY", help="Also this policy; may be given several times.")
@click.option("--slots", type=click.IntRange(1), default=64, show_default=True, help="Most requests in a step.")
@click.option(
    "--load",
    type=click.FloatRange(0, min_open=True),
    help="Stretch arrival times so that the trace offers so many times what the machine can do: its capacity is the "
    "work that it does a second while all requests of the trace wait from the start, under fcfs. By default arrivals "
    "are as recorded.",
)
@click.option("--profile", type=click.Path(path_type=Path), help="Step costs as JSON; a small decoder's by default.")
@click.option("--rows", type=click.IntRange(1), help="Most caches kept in place, paused ones too; twice the slots.")
@click.option("--cache-tokens", type=click.IntRange(1), help="Tokens that all caches hold; 4,096 a slot by default.")
@click.option("--host-tokens", type=click.IntRange(0), default=0, help="Tokens that swapped caches may take.")
@click.option("--chunk", type=click.IntRange(1), default=512, show_default=True, help="Most prompt tokens of a step.")
@click.option("--queue-tokens", type=click.IntRange(1), help="Refuse requests when so many tokens wait to begin.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of --policy, as in horizon=60.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for simulation.json and simulation.html.")
@json_option
def simulate(trace: str, policy: str, compare: tuple[str, ...], out: Path | None, as_json: bool, **given: Any) -> None:
    """Serve TRACE under a policy on a virtual clock, by the engine's own scheduler.

    TRACE is a csv, tsv or jsonl file with the columns arrival_s, input_tokens and output_tokens, and if you like
    max_tokens, priority and key.
    """
    from fastserve.generation import figures, simulator, traces
    from fastserve.generation.step_cost import SMALL_DECODER, StepCost

    cost = StepCost.read_file(given["profile"]) if given["profile"] else SMALL_DECODER
    requests = traces.read_trace(trace)
    limits = _limits(given)
    if given["load"] is not None:
        requests = simulator.at_load(requests, given["load"], limits, cost)
    outcomes = {
        name: simulator.simulate(requests, name, limits, cost, **(_options(given["options"]) if name == policy else {}))
        for name in dict.fromkeys((policy, *compare))
    }
    found = {name: figures.figures(outcome) for name, outcome in outcomes.items()}
    where = ""
    if out is not None:
        from fastserve.evaluation.simulation import write_simulation

        where = f"\n\npage  {write_simulation(out, outcomes, title=Path(trace).name)}"
    result = {"trace": trace, "load": given["load"], "slots": limits.slots, "profile": cost.to_json()}
    show(result | {"policies": found}, figures.figures_text(found) + where, as_json=as_json)


def _limits(given: dict[str, Any]) -> Any:
    from fastserve.generation.limits import Limits

    slots, size = given["slots"], Limits().block_size
    return Limits(
        slots=slots,
        rows=given["rows"] or 2 * slots,
        blocks=-(-(given["cache_tokens"] or max(4096 * slots, 32_768)) // size),
        host_blocks=given["host_tokens"] // size,
        chunk=given["chunk"],
        max_waiting_tokens=given["queue_tokens"] or float("inf"),
    )


def _options(words: tuple[str, ...]) -> dict[str, Any]:
    from fastserve.config import parse_override

    found = {}
    for word in words:
        path, value = parse_override(word)
        if len(path) != 1:
            raise ConfigError(f"--option {word}: expected KEY=VALUE, as in horizon=60")
        found[path[0]] = value
    return found
