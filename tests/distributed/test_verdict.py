"""The verdict names the odd node, value by value; reports are made up here."""

from __future__ import annotations

from typing import Any

import pytest

from fastserve.distributed.network import Endpoint
from fastserve.distributed.preflight.messages import Card, Facts, Link, Report
from fastserve.distributed.preflight.outcome import Outcome
from fastserve.distributed.preflight.verdict import compare, megabits

MOST = "on node0, node1"
VERSIONS = {"fastserve": "1.0", "python": "3.11.7", "torch": "2.13.0", "numpy": "2.1"}


def card(number: int, **changes: Any) -> Card:
    values = {"name": f"node{number}", "address": f"10.0.0.{number}", "port": 1, "token": "", "host": number == 0}
    return Card.model_validate({"number": number, "fastserve": "1.0", "mark": f"m{number}", **values, **changes})


def report(number: int, count: int, *, links: dict[int, dict[str, Any]] | None = None, **changes: Any) -> Report:
    """A node like all others, but for `changes` of its facts (or `sees`, `mark`) and of its links."""
    others = [other for other in range(count) if other != number]
    usual = {"round_trip_seconds": 0.0002, "bytes_per_second": 1e9, "clock_ahead_seconds": 0.0}
    facts = {
        "versions": VERSIONS, "cores": 8, "memory_gib": 30.0, "home": "/home", "home_gib": 100.0,
        "configuration": {"train": {"epochs": 3}}, "data": {"a.tsv": "a" * 64}, **changes,
    }  # fmt: skip
    return Report(
        card=card(number, **({"mark": changes["mark"]} if "mark" in changes else {})),
        facts=Facts.model_validate(facts),
        links=[Link.model_validate({"to": to, **usual, **(links or {}).get(to, {})}) for to in others],
        sees=changes.get("sees", others),
        places=changes.get("places", {}),
    )


def outcome(reports: list[Report], *, nodes: tuple[int, int] | None = None, silent: int = 0) -> Outcome:
    cards = [one.card for one in reports] + [card(len(reports) + number) for number in range(silent)]
    return Outcome(Endpoint("node0", 29400), nodes or (len(cards), len(cards)), 60.0, cards, reports)


def test_nodes_that_are_alike_are_ready() -> None:
    found = outcome([report(number, 3) for number in range(3)])
    assert found.findings == []
    assert found.passed
    assert found.describe().endswith("\n\n3 nodes are ready")
    assert "0.2 ms 8.0 Gbit/s" in found.describe()


@pytest.mark.parametrize(
    ("changes", "level", "said"),
    [
        ({"versions": {**VERSIONS, "torch": "2.11.0"}}, "fault", f"torch: 2.13.0 {MOST}; 2.11.0 on node2"),
        ({"versions": {**VERSIONS, "numpy": "2.2"}}, "warning", f"numpy: 2.1 {MOST}; 2.2 on node2"),
        ({"versions": {**VERSIONS, "torch": "none"}}, "fault", f"torch: 2.13.0 {MOST}; none on node2"),
        ({"configuration": {"train": {"epochs": 5}}}, "fault", f"configuration train.epochs: 3 {MOST}; 5 on node2"),
        ({"configuration": None}, "fault", f"the configuration: given {MOST}; not given on node2"),
        ({"data": {"a.tsv": "b" * 64}}, "fault", f"a.tsv: sha256 aaaaaaaaaaaa {MOST}; sha256 bbbbbbbbbbbb on node2"),
        ({"data": {"a.tsv": "missing"}}, "fault", f"a.tsv: sha256 aaaaaaaaaaaa {MOST}; missing on node2"),
        ({"cores": 4}, "warning", f"cores: 8 {MOST}; 4 on node2"),
        ({"gpus": ["A"]}, "warning", f"GPUs: none {MOST}; A on node2"),
        ({"memory_gib": 5.0}, "warning", "node2 has 5.0 GiB of memory free, the usual is 30.0 GiB"),
        ({"mark": None}, "fault", "node2 cannot write in $FASTSERVE_HOME, /home"),
        ({"links": {0: {"clock_ahead_seconds": -5.0}}}, "warning", "the clock of node2 is 5.0 s ahead of that of most"),
    ],
)
def test_one_of_three_that_differs_is_named(changes: dict[str, Any], level: str, said: str) -> None:
    found = outcome([report(0, 3), report(1, 3), report(2, 3, **changes)])
    (finding,) = found.findings
    assert finding.level == level
    assert finding.text.startswith(said)
    assert finding.odd == ("node2",)
    assert found.passed == (level == "warning")
    assert found.describe().endswith("odd: node2 (1 finding)")


def test_a_host_with_a_wrong_clock_is_odd_although_the_others_are_measured_against_it() -> None:
    behind = {0: {"clock_ahead_seconds": -3.0}}
    found = outcome([report(0, 3), report(1, 3, links=behind), report(2, 3, links=behind)])
    (finding,) = found.findings
    assert finding.odd == ("node0",)
    assert "3.0 s behind" in finding.text


def test_without_a_majority_nobody_is_odd() -> None:
    found = outcome([report(0, 2), report(1, 2, data={"a.tsv": "b" * 64}, links={0: {"clock_ahead_seconds": 2.0}})])
    assert [finding.odd for finding in found.findings] == [(), ()]
    assert "no majority tells which is right" in found.findings[0].text
    assert "the clock of node1 is 2.0 s behind the other one" in found.findings[1].text


def test_a_file_that_all_lack_is_a_fault() -> None:
    (finding,) = outcome([report(number, 2, data={"x.tsv": "missing"}) for number in range(2)]).findings
    assert (finding.level, finding.text) == ("fault", "x.tsv: missing on all nodes")


def test_a_home_that_is_not_shared_names_the_node_that_has_its_own() -> None:
    (finding,) = outcome([report(0, 3, sees=[1]), report(1, 3, sees=[0]), report(2, 3, sees=[])]).findings
    assert finding.odd == ("node2",)
    assert "not one shared folder: /home of node0, node1; /home of node2" in finding.text


def test_a_node_without_links_is_odd_and_a_broken_pair_is_not() -> None:
    def broken(*to: int) -> dict[int, dict[str, Any]]:
        gone = {"error": "no answer", "round_trip_seconds": None, "bytes_per_second": None}
        return {other: {**gone, "clock_ahead_seconds": None} for other in to}

    alone = outcome([report(0, 3, links=broken(2)), report(1, 3, links=broken(2)), report(2, 3, links=broken(0, 1))])
    assert {finding.odd for finding in alone.findings} == {("node2",)}
    assert "NOT REACHED" in alone.describe()
    pair = outcome([report(0, 4), report(1, 4, links=broken(2)), report(2, 4, links=broken(1)), report(3, 4)])
    assert [finding.odd for finding in pair.findings] == [(), ()]
    assert pair.findings[0].text == "node1 does not reach node2: no answer"


def test_a_slow_node_is_named() -> None:
    slow = {"round_trip_seconds": 0.04, "bytes_per_second": 5e6}
    found = outcome(
        [report(0, 3, links={2: slow}), report(1, 3, links={2: slow}), report(2, 3, links={0: slow, 1: slow})]
    )
    assert [finding.odd for finding in found.findings] == [("node2",), ("node2",)]
    assert found.passed


def test_nodes_that_did_not_come_are_counted_and_those_that_went_are_named() -> None:
    absent = outcome([report(0, 2), report(1, 2)], nodes=(3, 3))
    assert not absent.passed
    text = "2 of 3 nodes came to node0:29400 within 60 s: node0 (10.0.0.0), node1 (10.0.0.1); 1 missing"
    assert absent.findings[0].text == text
    assert outcome([report(0, 2), report(1, 2)], nodes=(2, 3)).passed  # as many as are needed
    silent = outcome([report(0, 2), report(1, 2)], silent=1)
    assert not silent.passed
    assert silent.findings[0].odd == ("node2",)
    assert silent.to_json()["silent"] == ["node2"]


def test_many_nodes_are_told_in_few_lines() -> None:
    found = outcome([report(number, 40, cores=4 if number == 7 else 8) for number in range(40)])
    text = found.describe()
    assert "node4 and 34 more; 4 on node7" in text
    assert f"of {40 * 39} links" in text
    assert len(text.splitlines()) < 60


def test_equal_host_names_are_told_apart() -> None:
    twins = [report(number, 2) for number in range(2)]
    twins = [one.model_copy(update={"card": one.card.model_copy(update={"name": "same"})}) for one in twins]
    assert list(outcome(twins).names.values()) == ["same#0", "same#1"]


def test_compare_needs_more_than_half() -> None:
    assert compare("x", {"a": "1", "b": "1"}, "fault") is None
    four = compare("x", {"a": "1", "b": "1", "c": "2", "d": "2"}, "fault")
    assert four is not None
    assert four.odd == ()
    five = compare("x", {"a": "1", "b": "1", "c": "1", "d": "2", "e": "3"}, "fault")
    assert five is not None
    assert five.odd == ("d", "e")


def test_bandwidth_is_told_as_networks_are_sold() -> None:
    assert [megabits(6e6), megabits(125e6), megabits(1e4)] == ["48 Mbit/s", "1.0 Gbit/s", "0.08 Mbit/s"]


def test_where_they_would_meet_next_is_a_node_that_all_reach() -> None:
    here, reached = {"node1:29400": "here"}, {"node1:29400": "reached"}
    assert outcome([report(0, 2, places=reached), report(1, 2, places=here)]).findings == []
    lost = outcome([report(0, 2, places={"node1:29400": "no answer within 3 s"}), report(1, 2, places=here)])
    assert [(finding.text, finding.odd) for finding in lost.findings] == [
        ("node1:29400 from node0: no answer within 3 s", ("node0",))
    ]
    (nobody,) = outcome([report(number, 2, places={"node7:29400": "unknown"}) for number in range(2)]).findings
    assert nobody.text == "node7:29400 is no address of a node that came: nobody could meet there"
    taken = {"node1:29400": "its port is not free: Address already in use"}
    (used,) = outcome([report(0, 2, places=reached), report(1, 2, places=taken)]).findings
    assert used.text == "node1:29400 from node1: its port is not free: Address already in use"
