"""What a check found, for a person and for a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastserve.distributed.network import Endpoint
from fastserve.distributed.preflight.messages import Card, Link, Report
from fastserve.distributed.preflight.verdict import Finding, clock_offsets, is_checksum, judge, listed, megabits

MOST_IN_MATRIX = 8
SLOWEST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """The nodes that came, and what those that came to an end reported; the same on every node."""

    endpoint: Endpoint
    nodes: tuple[int, int]
    seconds: float
    cards: Sequence[Card]
    reports: Sequence[Report]

    @property
    def names(self) -> dict[int, str]:
        """Number of a node to its host name, with the number where another node has the same."""
        often = Counter(card.name for card in self.cards)
        return {
            card.number: card.name if often[card.name] == 1 else f"{card.name}#{card.number}" for card in self.cards
        }

    @property
    def findings(self) -> list[Finding]:
        """Faults first."""
        found = [*self._absent(), *judge(self.cards, self.reports, self.names)]
        return sorted(found, key=lambda finding: finding.level)

    @property
    def passed(self) -> bool:
        """Whether a run on these nodes can be right."""
        return not any(finding.level == "fault" for finding in self.findings)

    def _absent(self) -> list[Finding]:
        least, most = self.nodes
        came = len(self.cards)
        if came >= most:
            return []
        here = listed([f"{self.names[card.number]} ({card.address})" for card in self.cards])
        text = (
            f"{came} of {most} nodes came to {self.endpoint} within {self.seconds:.0f} s: {here}; {most - came} missing"
        )
        return [Finding("fault" if came < least else "warning", text)]

    def to_json(self) -> dict[str, Any]:
        names, offsets = self.names, clock_offsets(self.reports)
        return {
            "passed": self.passed,
            "rendezvous": str(self.endpoint),
            "expected": list(self.nodes),
            "nodes": [
                {
                    "name": names[report.card.number],
                    **report.card.model_dump(exclude={"token", "mark", "name"}),
                    **report.facts.model_dump(),
                    "clock_ahead_seconds": offsets.get(report.card.number),
                    "links": [{**link.model_dump(), "to": names[link.to]} for link in report.links],
                    "places": report.places,
                    "sees_files_of": [names[number] for number in report.sees],
                }
                for report in self.reports
            ],
            "silent": [names[card.number] for card in self.cards if card.number not in self._spoke],
            "findings": [{"level": f.level, "text": f.text, "odd": list(f.odd)} for f in self.findings],
        }

    @property
    def _spoke(self) -> set[int]:
        return {report.card.number for report in self.reports}

    def describe(self) -> str:
        """Tables of nodes and links, the findings, and the verdict in one line at the end."""
        parts = [_aligned(self._node_rows())]
        if len(self.reports) > 1:
            parts.append(_aligned(self._link_rows()))
        if self.findings:
            parts.append("\n".join(f"{finding.level:>7}  {finding.text}" for finding in self.findings))
        return "\n\n".join([*parts, self._verdict()])

    def _node_rows(self) -> list[list[str]]:
        offsets, names = clock_offsets(self.reports), self.names
        rows = [["node", "address", "fastserve", "python", "torch", "cores", "GPUs", "memory", "disk", "clock", "data"]]
        for report in self.reports:
            facts, offset = report.facts, offsets.get(report.card.number)
            rows.append(
                [
                    names[report.card.number],
                    report.card.address,
                    *(facts.versions.get(name, "?") for name in ("fastserve", "python", "torch")),
                    str(facts.cores),
                    str(len(facts.gpus)),
                    f"{facts.memory_gib:.1f} GiB",
                    f"{facts.home_gib:.1f} GiB",
                    "?" if offset is None else "host" if report.card.host else f"{offset:+.3f} s",
                    _files(facts.data),
                ]
            )
        return rows

    def _link_rows(self) -> list[list[str]]:
        if len(self.reports) > MOST_IN_MATRIX:
            return self._slowest_rows()
        names = self.names
        numbers = [report.card.number for report in self.reports]
        rows = [["from \\ to", *(names[number] for number in numbers)]]
        for report in self.reports:
            links = {link.to: _figures(link) for link in report.links}
            rows.append([names[report.card.number], *(links.get(number, "-") for number in numbers)])
        return rows

    def _slowest_rows(self) -> list[list[str]]:
        links = [(report.card.number, link) for report in self.reports for link in report.links]
        links.sort(key=lambda pair: pair[1].bytes_per_second or 0.0)
        names = self.names
        shown = [[names[start], names[link.to], _figures(link)] for start, link in links[:SLOWEST_SHOWN]]
        return [["slowest from", "to", f"of {len(links)} links"], *shown]

    def _verdict(self) -> str:
        count = len(self.reports)
        verdict = f"{count} {'node is' if count == 1 else 'nodes are'} ready" if self.passed else "not ready"
        blamed = Counter(name for finding in self.findings for name in dict.fromkeys(finding.odd))
        if not blamed:
            return verdict if self.passed else f"{verdict}: see the faults above"
        odd = listed([f"{name} ({_times(count)})" for name, count in blamed.most_common()])
        return f"{verdict}; odd: {odd}"


def _times(count: int) -> str:
    return "1 finding" if count == 1 else f"{count} findings"


def _files(data: dict[str, str]) -> str:
    return f"{sum(map(is_checksum, data.values()))} of {len(data)} files" if data else "-"


def _figures(link: Link) -> str:
    if link.round_trip_seconds is None or link.bytes_per_second is None:
        return "NOT REACHED"
    return f"{link.round_trip_seconds * 1e3:.1f} ms {megabits(link.bytes_per_second)}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
