"""The cost model: what must hold whatever the figures, and the words in which they are given."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.distributed.cost import (
    HANDSHAKE,
    PAYLOAD,
    Cluster,
    Link,
    Work,
    all_gather,
    all_reduce,
    bytes_of,
    estimate,
    recommend,
    reduce_scatter,
)
from fastserve.errors import ConfigError

WORK = Work(
    rows=512, fixed=0.01, per_row=0.001, dense=400_000_000, table_row=100.0, dense_state=2_000_000_000,
    tables=1_000_000, largest=50_000_000, activations=1e6, blocks=7, in_blocks=350_000_000,
)  # fmt: skip
FAST, SLOW = Link.parse("100Gbit", "5us"), Link.parse("50Mbit", "20ms")


def cluster(workers: int, link: Link = FAST) -> Cluster:
    return Cluster(workers, 1, 1, link, FAST)


@pytest.mark.parametrize(
    ("said", "bytes_a_second"),
    [("100Gbit", 12.5e9), ("50 Mbit/s", 6.25e6), ("12GB", 12e9), ("1.6 Gbps", 2e8), ("800kbit", 1e5)],
)
def test_bandwidths_are_read_as_they_are_written(said: str, bytes_a_second: float) -> None:
    """Headers of frames are part of what a wire carries."""
    assert Link.parse(said).bandwidth == pytest.approx(bytes_a_second * PAYLOAD)


@pytest.mark.parametrize("said", ["fast", "-3ms", "20", "0Gbit", ""])
def test_what_is_no_quantity_is_refused(said: str) -> None:
    with pytest.raises(ConfigError):
        Link.parse(said)
    with pytest.raises(ConfigError):
        Link.parse("1Gbit", said)


def test_sizes() -> None:
    assert bytes_of("80GB") == 80_000_000_000
    with pytest.raises(ConfigError, match="80GB"):
        bytes_of("80")


def test_two_workers_send_the_whole_once() -> None:
    found = all_reduce(1e9, cluster(2))
    assert found.sent == 1e9
    assert found.seconds == pytest.approx(2 * HANDSHAKE * FAST.latency + 1e9 / FAST.bandwidth)


def test_what_goes_around_once_and_twice() -> None:
    """With nccl an all-reduce is a reduce-scatter and an all-gather; gloo has no reduce-scatter that sends less."""
    on_processors, on_devices = cluster(4), replace(cluster(4), gloo=False)
    assert all_gather(1e9, on_devices).sent == 0.75e9
    assert all_gather(1e9, on_devices) + reduce_scatter(1e9, on_devices) == all_reduce(1e9, on_devices)
    assert reduce_scatter(1e9, on_processors) == all_reduce(1e9, on_processors)


def test_fsdp_waits_for_each_block() -> None:
    """Of 7 blocks two gathers and a scatter, of the rest one of each, and the norm; of what there is, half a round."""
    slow = replace(WORK, table_row=0.0)
    found = estimate(slow, cluster(2, SLOW), "fsdp")
    assert found.sent == pytest.approx(0.5 * (4 * WORK.in_blocks + 3 * (WORK.dense - WORK.in_blocks)))
    rounds = 7 * (1 + 1 + 2) + (1 + 2) + 2
    assert found.exchange == pytest.approx(rounds * HANDSHAKE * SLOW.latency + found.sent / SLOW.bandwidth)
    on_devices = estimate(slow, replace(cluster(2, SLOW), gloo=False), "fsdp")
    assert on_devices.sent == pytest.approx(found.sent - 0.5 * WORK.dense)


def test_fsdp_computes_more_than_others() -> None:
    """It copies weights and gradients, which workers that share cores do in turns; and gathers by copying as well."""
    more = replace(WORK, sharding=0.02)
    for workers, sharing in ((2, 1), (4, 2)):
        place = Cluster(workers, workers, 2, FAST, FAST)
        gain = estimate(more, place, "fsdp").compute - estimate(WORK, place, "fsdp").compute
        assert gain == pytest.approx(0.02 * sharing)
        assert estimate(more, place, "ddp") == estimate(WORK, place, "ddp")
    assert estimate(more, cluster(1), "fsdp").step == estimate(more, cluster(1), "ddp").step
    slow = replace(FAST, gathering=3.0)
    copied, plain = (all_gather(1e9, Cluster(2, 2, 2, link, link)).seconds for link in (slow, FAST))
    assert copied - plain == pytest.approx(2 * 0.5e9 / FAST.bandwidth)


def test_workers_that_share_cores_exchange_more_slowly() -> None:
    """Inside a machine an exchange is work of its cores, which hides nothing; on a wire it is waiting."""
    two, four = (estimate(WORK, Cluster(n, n, 2, FAST, FAST), "ddp") for n in (2, 4))
    alone = estimate(WORK, Cluster(4, 4, 4, FAST, FAST), "ddp")
    assert (two.hidden, four.hidden, alone.hidden) == (0, 0, 0)
    assert four.exchange == pytest.approx(2 * alone.exchange)
    assert estimate(WORK, Cluster(2, 2, 4, FAST, FAST), "ddp").hidden > 0, "two of four cores are free"
    apart = estimate(WORK, Cluster(4, 1, 1, FAST, FAST), "ddp")
    assert apart.hidden > 0
    assert apart.exchange == pytest.approx(alone.exchange)


def test_neighbours_on_a_machine_slow_computing_down() -> None:
    """A worker alone on its machine has none."""
    near, apart = Cluster(2, 2, 2, FAST, FAST), Cluster(2, 1, 1, FAST, FAST)
    for place, times in ((near, 1.3), (apart, 1.0)):
        crowded = estimate(WORK, replace(place, crowding=1.3), "ddp")
        assert crowded.compute == pytest.approx(times * estimate(WORK, place, "ddp").compute)
        assert crowded.exchange == estimate(WORK, place, "ddp").exchange


def test_workers_that_meet_wait_for_the_slowest() -> None:
    """The expected largest of n normal draws: 0.56 deviations of 2, 1.03 of 4; diloco's workers meet rarely."""
    uneven = replace(WORK, jitter=0.1)
    for workers, slowest in ((1, 0.0), (2, 0.564), (4, 1.029)):
        even, found = (estimate(work, cluster(workers), "ddp").compute for work in (WORK, uneven))
        assert found / even == pytest.approx(1 + 0.1 * slowest, abs=0.003)
    even, found = (estimate(work, cluster(4), "diloco", inner_steps=25).compute for work in (WORK, uneven))
    assert found / even == pytest.approx(1 + 0.1 * 1.029 / 5, abs=0.003)


def test_one_worker_waits_for_nobody() -> None:
    for strategy in ("ddp", "fsdp", "diloco"):
        found = estimate(WORK, cluster(1), strategy)
        assert (found.exchange, found.sent) == (0, 0)
        assert found.step == pytest.approx(0.01 + 0.512)


def test_workers_beyond_the_cores_are_slower() -> None:
    one = estimate(WORK, Cluster(2, 2, 2, FAST, FAST), "ddp").compute
    four = estimate(WORK, Cluster(4, 4, 2, FAST, FAST), "ddp").compute
    assert four == pytest.approx(one + WORK.fixed)


@given(st.integers(2, 4096), st.sampled_from([FAST, SLOW]))
def test_figures_are_sane(workers: int, link: Link) -> None:
    ddp, fsdp, diloco = (estimate(WORK, cluster(workers, link), each) for each in ("ddp", "fsdp", "diloco"))
    for found in (ddp, fsdp, diloco):
        assert 0 <= found.hidden <= found.exchange
        assert 0 <= found.share < 1
        assert found.step >= found.compute
    assert diloco.sent < ddp.sent / 50
    assert fsdp.memory < ddp.memory
    assert ddp.sent < 2 * (WORK.dense + WORK.table_row * WORK.rows)


def test_what_is_recommended() -> None:
    def of(workers: int, link: Link, memory: float | None = None) -> str | None:
        each = [estimate(WORK, cluster(workers, link), name) for name in ("ddp", "fsdp", "diloco")]
        best, why = recommend(each, memory)
        assert why
        return best.strategy if best else None

    assert of(8, FAST) == "ddp"
    assert of(8, SLOW) == "diloco"
    assert of(8, FAST, memory=1.5e9) == "fsdp"
    assert of(8, FAST, memory=1e8) is None


def test_hidden_exchanges_cost_nothing() -> None:
    small = replace(WORK, dense=1_000_000)
    assert estimate(small, cluster(2), "ddp").hidden == 0, "one bucket travels when everything is computed"
    assert estimate(WORK, cluster(2), "ddp").hidden > 0
