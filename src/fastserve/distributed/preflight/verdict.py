"""Who is odd: what the nodes reported, compared value by value, majority against minority. Nothing is asked here."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastserve.distributed.preflight.facts import ABSENT
from fastserve.distributed.preflight.messages import Card, Report
from fastserve.distributed.preflight.places import HERE, REACHED

MUST_AGREE = ("fastserve", "python", "torch", "nccl")
"""Workers with other versions of these fail or compute something else; of the rest they may differ."""
MAY_DIFFER = ("distributed.workers", "train.threads")
CLOCK_LIMIT_SECONDS = 1.0
SLOWER = 4.0
"""A link so many times slower than the usual one is odd."""
LEAST_ODD_ROUND_TRIP_SECONDS = 0.001
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to mend (a fault: a run would fail or be wrong) or to know (a warning). odd: names of nodes."""

    level: Literal["fault", "warning"]
    text: str
    odd: tuple[str, ...] = ()


def judge(cards: Sequence[Card], reports: Sequence[Report], names: Mapping[int, str]) -> list[Finding]:
    """What is wrong with the nodes that came; names: number of a node to what it is called."""
    return [
        *_silent(cards, reports, names),
        *_links(reports, names),
        *_places(reports, names),
        *_homes(reports, names),
        *_versions(reports, names),
        *_configurations(reports, names),
        *_data(reports, names),
        *_clocks(reports, names),
        *_sizes(reports, names),
        *_speeds(reports, names),
    ]


def compare(subject: str, values: Mapping[str, str], level: Literal["fault", "warning"]) -> Finding | None:
    """A finding where the nodes' `values` differ. With more than half of the nodes on one side, the others are odd."""
    groups: dict[str, list[str]] = {}
    for node, value in values.items():
        groups.setdefault(value, []).append(node)
    if len(groups) < 2:
        return None
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    parts = [f"{value} on {listed(nodes)}" for value, nodes in ordered]
    if len(ordered[0][1]) * 2 <= len(values):
        return Finding(level, f"{subject}: {'; '.join(parts)} (no majority tells which is right)")
    odd = [node for _, nodes in ordered[1:] for node in nodes]
    return Finding(level, f"{subject}: {'; '.join(parts)}", tuple(odd))


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a nested configuration and their values as text."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _silent(cards: Sequence[Card], reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    spoke = {report.card.number for report in reports}
    for card in cards:
        if card.number not in spoke:
            text = f"{names[card.number]} ({card.address}) came, then fell silent: it ended or was cut off"
            yield Finding("fault", text, (names[card.number],))


def _links(reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    """Pairs that do not reach each other. A node with more than half of its links broken is the odd one."""
    spoke = {report.card.number for report in reports}
    broken = [(r.card.number, link) for r in reports for link in r.links if link.error and link.to in spoke]
    touched = Counter(number for start, link in broken for number in (start, link.to))
    for start, link in broken:
        ends = (start, link.to)
        odd = [number for number in ends if touched[number] > len(spoke) - 1 and len(spoke) > 2]
        text = f"{names[start]} does not reach {names[link.to]}: {link.error}"
        yield Finding("fault", text, tuple(names[number] for number in odd))


def _places(reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    """Places where a run would meet when the first is lost: nobody's, not free, or not reached."""
    for place in dict.fromkeys(place for report in reports for place in report.places):
        ways = {names[report.card.number]: report.places.get(place, "not named there") for report in reports}
        if HERE not in ways.values() and not any("port is not free" in way for way in ways.values()):
            yield Finding("fault", f"{place} is no address of a node that came: nobody could meet there")
            continue
        for node, way in ways.items():
            if way not in (HERE, REACHED):
                yield Finding("fault", f"{place} from {node}: {way}", (node,))


def _homes(reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    """The nodes that see each other's marks share a home: the largest such group is right."""
    if len(reports) < 2:
        return
    groups = _sharing(reports)
    where = {report.card.number: report.facts.home for report in reports}
    for report in reports:
        if report.card.mark is None:
            name = names[report.card.number]
            yield Finding("fault", f"{name} cannot write in $FASTSERVE_HOME, {where[report.card.number]}", (name,))
    if len(groups) < 2:
        return
    largest = max(groups, key=len)
    majority = len(largest) * 2 > len(reports)
    parts = [f"{where[group[0]]} of {listed([names[number] for number in group])}" for group in groups]
    odd = [names[number] for group in groups if majority and group is not largest for number in group]
    text = f"$FASTSERVE_HOME is not one shared folder: {'; '.join(parts)} do not see each other's files"
    yield Finding("fault", text, tuple(odd))


def _sharing(reports: Sequence[Report]) -> list[list[int]]:
    """Numbers of nodes in groups that see each other's marks, the largest first."""
    sees = {report.card.number: set(report.sees) for report in reports}
    groups: list[list[int]] = []
    for number in sees:
        for group in groups:
            if all(number in sees[other] or other in sees[number] for other in group):
                group.append(number)
                break
        else:
            groups.append([number])
    return sorted(groups, key=len, reverse=True)


def _versions(reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    for name in dict.fromkeys(name for report in reports for name in report.facts.versions):
        values = {names[r.card.number]: r.facts.versions.get(name, ABSENT) for r in reports}
        finding = compare(name, values, "fault" if name in MUST_AGREE else "warning")
        if finding is not None:
            yield finding


def _configurations(reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    """Every key of which nodes hold different values."""
    contents = {
        names[r.card.number]: None if r.facts.configuration is None else dict(flat(r.facts.configuration))
        for r in reports
    }
    given = {node: "given" if content is not None else "not given" for node, content in contents.items()}
    finding = compare("the configuration", given, "fault")
    if finding is not None:
        yield finding
    held = {node: content for node, content in contents.items() if content is not None}
    for key in dict.fromkeys(key for content in held.values() for key in content):
        values = {node: content.get(key, "absent") for node, content in held.items()}
        finding = compare(f"configuration {key}", values, "warning" if key in MAY_DIFFER else "fault")
        if finding is not None:
            yield finding


def _data(reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    """Files that differ, and files that all nodes lack."""
    for path in dict.fromkeys(path for report in reports for path in report.facts.data):
        full = {names[r.card.number]: r.facts.data.get(path, "missing") for r in reports}
        values = {node: f"sha256 {value[:12]}" if is_checksum(value) else value for node, value in full.items()}
        finding = compare(path, values, "fault")
        if finding is not None:
            yield finding
        elif not is_checksum(value := next(iter(full.values()))):
            yield Finding("fault", f"{path}: {value} on all nodes")


def is_checksum(value: str) -> bool:
    """Whether a file was read, rather than missing or unreadable."""
    return len(value) == 64 and " " not in value


def _clocks(reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    offsets = clock_offsets(reports)
    if len(offsets) < 2:
        return
    middle = statistics.median_low(offsets.values()) if len(offsets) > 2 else 0.0
    for number, offset in offsets.items():
        ahead = offset - middle
        if abs(ahead) > CLOCK_LIMIT_SECONDS:
            way = "ahead of" if ahead > 0 else "behind"
            other = "that of most nodes" if len(offsets) > 2 else "the other one"
            text = f"the clock of {names[number]} is {abs(ahead):.1f} s {way} {other}: let all follow one time server"
            yield Finding("warning", text, (names[number],) if len(offsets) > 2 else ())


def clock_offsets(reports: Sequence[Report]) -> dict[int, float]:
    """Seconds by which each node's clock is ahead of the host's, of those that reached the host."""
    host = next((report.card.number for report in reports if report.card.host), None)
    offsets = {} if host is None else {host: 0.0}
    for report in reports:
        for link in report.links:
            if link.to == host and link.clock_ahead_seconds is not None:
                offsets[report.card.number] = -link.clock_ahead_seconds
    return offsets


def _sizes(reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    """What makes a node slower than the others, for whom the others will wait; or what it will run out of."""
    shown = {
        "cores": {names[r.card.number]: str(r.facts.cores) for r in reports},
        "GPUs": {names[r.card.number]: ", ".join(r.facts.gpus) or "none" for r in reports},
    }
    for subject, values in shown.items():
        finding = compare(subject, values, "warning")
        if finding is not None:
            yield finding
    middle = statistics.median(report.facts.memory_gib for report in reports) if reports else 0.0
    for report in reports:
        if report.facts.memory_gib * 2 < middle:
            name = names[report.card.number]
            text = f"{name} has {report.facts.memory_gib:.1f} GiB of memory free, the usual is {middle:.1f} GiB"
            yield Finding("warning", text, (name,))


def _speeds(reports: Sequence[Report], names: Mapping[int, str]) -> Iterator[Finding]:
    """A node whose best link is far slower than the usual best link."""
    if len(reports) < 3:
        return
    trips = _best(reports, "round_trip_seconds", min)
    rates = _best(reports, "bytes_per_second", max)
    for number, seconds in trips.items():
        usual = statistics.median_low(trips.values())
        if seconds > max(SLOWER * usual, LEAST_ODD_ROUND_TRIP_SECONDS):
            near, common = f"{seconds * 1e3:.1f} ms", f"{usual * 1e3:.1f} ms"
            text = f"{names[number]} is far away: {near} to the nearest node and back, usual are {common}"
            yield Finding("warning", text, (names[number],))
    for number, rate in rates.items():
        usual = statistics.median_high(rates.values())
        if rate * SLOWER < usual:
            text = f"{names[number]} has a slow link: {megabits(rate)} at best, usual are {megabits(usual)}"
            yield Finding("warning", text, (names[number],))


def _best(reports: Sequence[Report], figure: str, choose: Any) -> dict[int, float]:
    """Of each node, its best link, measured from either end."""
    found: dict[int, list[float]] = {}
    for report in reports:
        for link in report.links:
            value = getattr(link, figure)
            for number in (report.card.number, link.to) if value is not None else ():
                found.setdefault(number, []).append(value)
    return {number: choose(values) for number, values in found.items()}


def megabits(bytes_per_second: float) -> str:
    """As networks are sold: 48 Mbit/s, 9.4 Gbit/s."""
    value = bytes_per_second * 8 / 1e6
    return f"{value / 1e3:.1f} Gbit/s" if value >= 1e3 else f"{value:.3g} Mbit/s"
