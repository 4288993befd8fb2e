"""What a step costs on many workers: arithmetic on a few measured figures, without torch.

A worker's time is a + b * rows, as measured on one worker; workers that share cores share their speed. Exchanges follow
the usual model of collectives (Thakur, Rabenseifner, Gropp 2005): messages * latency + bytes on the wire / bandwidth.

Two things are told apart that both are exchanges. Between machines a worker waits for the wire, and can compute
meanwhile. Between processes of a machine, with gloo, it copies: that is work of the same cores, which workers share as
they share them for computing, and which hides nothing unless a core is free.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import NormalDist

from fastserve.errors import ConfigError

UNITS = {"bit": 1 / 8, "bits": 1 / 8, "bps": 1 / 8, "b": 1.0}
PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
INNER_STEPS = 25
"""Of diloco, between two exchanges."""
MOVEMENT = (1 + 4 / 256) / 4
"""Of the weights' bytes, what a movement of diloco travels as."""
PROCESS_BYTES = 300 << 20
"""A worker with torch and no model."""
TABLE_COPIES = 4
"""Of a table in memory: its weights, two moments of Adam, and the best weights."""
BACKWARD = 2 / 3
"""Of a step's computation, the part in which gradients can travel meanwhile."""
BUCKET_BYTES = 25 << 20
"""The last gradients of a step, which no computation hides (torch's DDP)."""
PAYLOAD = 1448 / 1514
"""Of the bytes on a wire: a full Ethernet frame without its headers and those of IPv4 and TCP with time stamps."""
HANDSHAKE = 2
"""Ways that a message of gloo takes: its receiver says first that it is ready."""


@dataclass(frozen=True, slots=True)
class Link:
    """Between two workers, one way. bandwidth: bytes of payload a second; latency: seconds. gathering: times as long as
    its bytes say an all-gather takes, where copies and not the wire are what lasts."""

    bandwidth: float
    latency: float
    gathering: float = 1.0

    @classmethod
    def parse(cls, bandwidth: str, latency: str = "50us") -> Link:
        """`100Gbit` on the wire and `20ms`; ConfigError says what is expected."""
        return cls(_quantity(bandwidth, UNITS, "a bandwidth such as 100Gbit or 12GB") * PAYLOAD, _seconds(latency))


def _quantity(text: str, units: dict[str, float], expected: str) -> float:
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)([a-z]+)(?:/s)?\s*", text.lower())
    if not found or found[3] not in units or float(found[1]) <= 0:
        raise ConfigError(f"'{text}' is not {expected}")
    return float(found[1]) * PREFIXES[found[2]] * units[found[3]]


def _seconds(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9.]+)\s*(us|ms|s)\s*", text.lower())
    if not found:
        raise ConfigError(f"'{text}' is not a time such as 50us or 20ms")
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]


def bytes_of(text: str) -> int:
    """`80GB` to bytes."""
    return int(_quantity(text, {"b": 1.0}, "a size such as 80GB"))


@dataclass(frozen=True, slots=True)
class Work:
    """A training step, as one worker with one thread measured it.

    rows: of a step on all workers. fixed, per_row: seconds. dense: bytes of the gradients that travel whole.
    table_row: bytes of row-sparse gradients that travel for each text. dense_state: bytes of weights, gradients,
    optimizer and copies of the parameters that can be sharded. tables: bytes of the tables' weights. largest: bytes of
    the weights that are whole at a time. activations: bytes a row. blocks: parts of the network that fsdp exchanges one
    by one; in_blocks: bytes of their weights, among `dense`. sharding: seconds that fsdp computes in a step besides,
    whatever the rows: it copies weights and gradients together and apart. jitter: relative standard deviation of what
    equal steps take.
    """

    rows: int
    fixed: float
    per_row: float
    dense: int
    table_row: float
    dense_state: int
    tables: int
    largest: int
    activations: float
    blocks: int = 0
    in_blocks: int = 0
    sharding: float = 0.0
    jitter: float = 0.0

    def waiting(self, workers: int, steps: int = 1) -> float:
        """By what share of a step the slowest of `workers` is expected behind their mean, where they meet once in
        `steps` (normal order statistics after Blom 1958)."""
        slowest = NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25)) if workers > 1 else 0.0
        return self.jitter * slowest / math.sqrt(steps)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where it would run. per_node: workers on a machine; cores: what they share there; speed: of a worker alone,
    compared with the one that was measured. inside: the link between workers of one machine, as two of them with a core
    each measured it. gloo: what processors exchange with; else it is nccl. crowding: times as long as alone a worker
    computes that has others beside it, each on a core of its own."""

    workers: int
    per_node: int
    cores: int
    link: Link
    inside: Link
    speed: float = 1.0
    gloo: bool = True
    crowding: float = 1.0

    @property
    def here(self) -> int:
        """Workers on one machine."""
        return min(self.per_node, self.workers)

    @property
    def sharing(self) -> float:
        """Workers for each core, where there are more of them."""
        return max(1.0, self.here / self.cores)

    @property
    def slowdown(self) -> float:
        """By how much workers that share cores, caches and memory compute more slowly."""
        return self.sharing / self.speed * (self.crowding if self.here > 1 else 1.0)

    @property
    def copies(self) -> bool:
        """Whether the exchange of all workers is work of their cores."""
        return self.gloo and self.workers <= self.per_node

    @property
    def slowest(self) -> Link:
        """What an exchange of all workers waits for."""
        return self.inside if self.workers <= self.per_node else self.link

    @property
    def overlap(self) -> float:
        """Share of an exchange that can go on while the worker computes."""
        return min(1.0, max(0.0, self.cores / self.here - 1)) if self.copies else 1.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """One strategy on one cluster. Times in seconds a step; sent: bytes a worker sends in a step, on average."""

    strategy: str
    workers: int
    compute: float
    exchange: float
    hidden: float
    sent: float
    memory: float
    rows: int

    @property
    def step(self) -> float:
        return self.compute + self.exchange - self.hidden

    @property
    def share(self) -> float:
        """Of a step, the part in which a worker waits for others."""
        return (self.exchange - self.hidden) / self.step

    @property
    def throughput(self) -> float:
        """Texts a second."""
        return self.rows / self.step


@dataclass(frozen=True, slots=True)
class Exchange:
    """Seconds, and bytes that each worker sends."""

    seconds: float = 0.0
    sent: float = 0.0

    def __add__(self, other: Exchange) -> Exchange:
        return Exchange(self.seconds + other.seconds, self.sent + other.sent)

    def __mul__(self, times: float) -> Exchange:
        return Exchange(self.seconds * times, self.sent * times)


def estimate(work: Work, cluster: Cluster, strategy: str, *, inner_steps: int = INNER_STEPS) -> Estimate:
    """Time, traffic and memory of `strategy`: ddp, fsdp or diloco."""
    workers = cluster.workers
    own = work.sharding if strategy == "fsdp" and workers > 1 else 0.0
    compute = (work.fixed + work.per_row * work.rows / workers + own) * cluster.slowdown
    compute *= 1 + work.waiting(workers, inner_steps if strategy == "diloco" else 1)
    dense, rest = Exchange(), Exchange()
    if workers > 1 and strategy == "diloco":
        rest = all_reduce((work.dense + work.tables) * MOVEMENT, cluster) * (1 / inner_steps)
    elif workers > 1:
        dense = _sharded(work, cluster) if strategy == "fsdp" else all_reduce(work.dense, cluster)
        rest = _rows(work, cluster)
    early = max(0.0, 1 - BUCKET_BYTES / work.dense) if work.dense else 0.0
    hidden = min(dense.seconds * early, compute * BACKWARD) * cluster.overlap
    both = dense + rest
    return Estimate(
        strategy, workers, compute, both.seconds, hidden, both.sent, _memory(work, workers, strategy), work.rows
    )


def _sharded(work: Work, cluster: Cluster) -> Exchange:
    """What fsdp exchanges in a step: weights of blocks are gathered in both passes, the others once; all gradients are
    scattered; and the squares of the shards' gradients are summed for the norm."""
    block = work.in_blocks / max(work.blocks, 1)
    blocks = (all_gather(block, cluster) * 2 + reduce_scatter(block, cluster)) * work.blocks
    others = work.dense - work.in_blocks
    return blocks + all_gather(others, cluster) + reduce_scatter(others, cluster) + all_reduce(0, cluster)


def _rows(work: Work, cluster: Cluster) -> Exchange:
    """Row-sparse gradients: how many each worker has, which they are, and their values."""
    size = work.table_row * work.rows
    return all_reduce(0, cluster) + all_gather(0, cluster) + all_gather(size, cluster) if size else Exchange()


def all_reduce(size: float, cluster: Cluster) -> Exchange:
    """Every worker sends twice its part of what is summed: a reduce-scatter and an all-gather."""
    return _exchange(size, cluster, 2)


def all_gather(size: float, cluster: Cluster) -> Exchange:
    """All workers together have `size` bytes that each wants."""
    return _exchange(size, cluster, 1, cluster.slowest.gathering)


def reduce_scatter(size: float, cluster: Cluster) -> Exchange:
    """Every worker wants its part of what is summed. gloo sums the whole and drops the rest."""
    return _exchange(size, cluster, 2 if cluster.gloo else 1)


def _exchange(size: float, cluster: Cluster, rounds: int, longer: float = 1.0) -> Exchange:
    """rounds: how often what there is goes around, along a ring while that is short, else along a tree. longer: times
    that bytes take."""
    others, link = cluster.workers - 1, cluster.slowest
    messages = rounds * min(others, 2 * math.ceil(math.log2(cluster.workers)))
    sent = rounds * others / cluster.workers * size
    seconds = messages * (HANDSHAKE if cluster.gloo else 1) * link.latency + longer * sent / link.bandwidth
    return Exchange(seconds * (cluster.sharing if cluster.copies else 1.0), sent)


def _memory(work: Work, workers: int, strategy: str) -> float:
    dense = work.dense_state / workers + work.largest if strategy == "fsdp" and workers > 1 else work.dense_state
    outer = 2 * (work.dense + work.tables) if strategy == "diloco" and workers > 1 else 0.0
    return PROCESS_BYTES + dense + TABLE_COPIES * work.tables + outer + work.activations * work.rows / workers


def recommend(estimates: list[Estimate], memory: float | None) -> tuple[Estimate | None, str]:
    """The best of one number of workers, and why. memory: bytes of a worker, where they are known."""
    fitting = [each for each in estimates if memory is None or each.memory <= memory]
    if not fitting:
        return None, "no strategy fits the memory of a worker: take more workers with fsdp, or a smaller batch"
    exact = [each for each in fitting if each.strategy != "diloco"]
    best = min(exact or fitting, key=lambda each: each.step)
    apart = next((each for each in fitting if each.strategy == "diloco"), None)
    if apart is not None and best.share > 0.5 and apart.step < best.step / 2:
        return apart, "the link is slow: in ddp and fsdp workers wait for most of a step"
    if best.strategy == "fsdp" and all(each.strategy != "ddp" for each in fitting):
        return best, "the whole model does not fit a worker"
    return best, "the fastest that gives the result of one worker"
