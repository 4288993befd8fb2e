"""What a configuration would cost on many workers: measured here on one, and extrapolated."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastserve import device
from fastserve.config import Config
from fastserve.distributed.cost import INNER_STEPS, Cluster, Estimate, Link, Work, bytes_of, estimate, recommend
from fastserve.distributed.probe import measure_inside
from fastserve.distributed.world import ALONE
from fastserve.errors import TrainingError
from fastserve.log import warn
from fastserve.training import course
from fastserve.training.calibrate import crowding, measure
from fastserve.training.course import PREPARED
from fastserve.training.loop import TrainingRun
from fastserve.training.neighbour import neighbours
from fastserve.training.plans import HasSizes
from fastserve.training.runs import RunFolder

STRATEGIES = ("ddp", "fsdp", "diloco")
HEADINGS = "workers  strategy        step  {rate:>10}  waiting  sent a step    memory"
TEXTS, CONTEXTS = "texts", "contexts"
"""What the rows of a step are: texts, or as many tokens as fill a language model's context."""
MOST_TOGETHER = 8
"""Workers of a machine that are measured beside each other; more are taken to slow each other down no further."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Estimates for each number of workers, one for each strategy. memory: bytes of a worker, where they are known.

    unit: what rows are, TEXTS or CONTEXTS. crowding: times as long as alone that a worker with others beside it
    computes, each on a core of its own.
    """

    network: str
    unit: str
    work: Work
    inside: Link
    crowding: float
    estimates: dict[int, list[Estimate]]
    memory: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "unit": self.unit,
            "work": asdict(self.work),
            "link_inside": asdict(self.inside),
            "crowding": self.crowding,
            "plans": [self._json_of(workers, found) for workers, found in self.estimates.items()],
        }

    def _json_of(self, workers: int, found: list[Estimate]) -> dict[str, Any]:
        best, why = recommend(found, self.memory)
        each = [{**asdict(e), "step": e.step, "share": e.share, "throughput": e.throughput} for e in found]
        return {"workers": workers, "recommended": best.strategy if best else None, "why": why, "strategies": each}

    def text(self) -> str:
        """For a person: a line for each number of workers and strategy."""
        work = self.work
        lines = [
            f"{self.network}: {work.rows} {self.unit} a step, "
            f"{1e3 * (work.fixed + work.per_row * work.rows):,.1f} ms on one core; "
            f"{work.dense / 1e6:,.1f} MB of gradients travel{self._of_tables()}",
            f"between processes here: {self.inside.bandwidth / 1e9:.2f} GB/s, {self.inside.latency * 1e6:.0f} us; "
            f"side by side they compute {self.crowding:.2f} times as long as alone",
            "",
            HEADINGS.format(rate=f"{self.unit}/s"),
        ]
        for workers, found in self.estimates.items():
            best, why = recommend(found, self.memory)
            for each in found:
                mark = f"  <- {why}" if each is best else ""
                lines.append(
                    f"{workers:>7}  {each.strategy:8}  {1e3 * each.step:>7,.1f} ms  {each.throughput:>10,.0f}  "
                    f"{each.share:>7.0%}  {each.sent / 1e6:>8,.2f} MB  {each.memory / 1e9:>5,.2f} GB{mark}"
                )
            lines += [why] if best is None else []
        return "\n".join(lines)

    def _of_tables(self) -> str:
        row = self.work.table_row
        return f", and {row / 1e3:,.1f} KB for each of the {self.unit}" if row else ""


def plan(
    config: Config,
    *,
    numbers: Sequence[int],
    link: str | None,
    latency: str,
    per_node: int | None,
    cores: int | None,
    speed: float,
    memory: str | None,
) -> Plan:
    """Prepare the data, measure a few steps, and estimate each strategy for each number of workers."""
    outside = None if link is None else Link.parse(link, latency)
    room = None if memory is None else float(bytes_of(memory))
    gloo = device.pick_device(config.train.device).type != "cuda"
    shared = cores or device.cores()
    together = min(per_node or max(numbers), shared, device.cores(), MOST_TOGETHER) if gloo else 1
    work, network, unit, slower = _measured(config, together)
    inside = measure_inside()
    inner = int(config.distributed.options.get("inner_steps", INNER_STEPS))
    estimates = {}
    for workers in numbers:
        here = per_node or (max(shared, 1) if outside is not None else workers)
        cluster = Cluster(workers, min(here, workers), shared, outside or inside, inside, speed, gloo, slower)
        estimates[workers] = [estimate(work, cluster, each, inner_steps=inner) for each in STRATEGIES]
    return Plan(network, unit, work, inside, slower, estimates, room)


def _measured(config: Config, together: int) -> tuple[Work, str, str, float]:
    """What a step costs, of which network, what its rows are, and how `together` workers of a machine slow each other
    down."""
    with tempfile.TemporaryDirectory(prefix="fastserve-plan-") as path:
        task, folder = course.pick(config.task), RunFolder(Path(path))
        task.prepare(config, folder.data, lambda: None)
        run = task.start(config, folder, ALONE)
        unit = CONTEXTS if isinstance(run.plan, HasSizes) else TEXTS
        network = json.loads((folder.data / PREPARED).read_text("utf-8"))["network"]
        work = measure(run)
        return work, network, unit, _crowding(run, config, folder, together) if together > 1 else 1.0


def _crowding(run: TrainingRun, config: Config, folder: RunFolder, together: int) -> float:
    """1 where it cannot be measured, as where the memory has no room for several."""
    try:
        return crowding(run, lambda: neighbours(config, folder.path, together - 1))
    except TrainingError as error:
        warn(f"workers of one machine are taken not to slow each other down, which was not measured: {error}")
        return 1.0
