"""The model card: one readable page about what a model is, how good it is, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastserve.bundle.format import Manifest
from fastserve.types import Report

_MOST_LABELS = 60


def write_card(manifest: Manifest, report: Report | None = None) -> str:
    """The card as Markdown."""
    sections = [
        _title(manifest),
        _data(manifest),
        _metrics(manifest, report),
        _per_class(report),
        _limits(manifest),
        _usage(manifest, report),
        _origin(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a `|` or a line break inside of a cell cannot break it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _name(manifest: Manifest) -> str:
    return str(manifest.lineage.config.get("name") or "MODEL")


def _title(manifest: Manifest) -> str:
    made = f"made by FastServe {manifest.fastserve} on {manifest.created:%Y-%m-%d}."
    if not manifest.labels:
        return f"# {_name(manifest)}\n\nA `{manifest.network.name}` network for {manifest.task}, {made}"
    kind = "several labels a text" if manifest.multi_label else "one label a text"
    shown = ", ".join(f"`{_cell(label)}`" for label in manifest.labels[:_MOST_LABELS])
    more = len(manifest.labels) - _MOST_LABELS
    return (
        f"# {_name(manifest)}\n\n"
        f"A `{manifest.network.name}` network for {manifest.task} ({kind}), {made}\n\n"
        f"{len(manifest.labels)} labels: {shown}{f', and {more} more' if more > 0 else ''}"
    )


def _data(manifest: Manifest) -> str:
    if not manifest.lineage.data:
        return ""
    rows = [
        (source.address, f"{source.rows:,}" if source.rows else "", f"`{source.sha256[:16]}`" if source.sha256 else "")
        for source in manifest.lineage.data
    ]
    return "## Data\n\n" + table(["file", "rows", "SHA-256 begins"], rows)


def _metrics(manifest: Manifest, report: Report | None) -> str:
    if report is not None and report.metrics:
        rows = [
            (name, f"{m.value:.4f}", "" if m.low is None or m.high is None else f"{m.low:.4f} to {m.high:.4f}")
            for name, m in report.metrics.items()
        ]
        notes = "".join(f"\n\n{_cell(note)}" for note in report.details.get("notes", ()))
        figures = table(["metric", "value", "95 % interval"], rows)
        return f"## Metrics\n\nOn {report.rows:,} rows that were not trained on.\n\n{figures}{notes}"
    if manifest.metrics:
        return "## Metrics\n\n" + table(["metric", "value"], [(k, f"{v:.4f}") for k, v in manifest.metrics.items()])
    return "## Metrics\n\nNot evaluated."


def _per_class(report: Report | None) -> str:
    """A row a label, from the report's `details["classes"]`: a list of objects with the same keys."""
    found = report.details.get("classes") if report is not None else None
    if not found:
        return ""
    columns = list(found[0])
    rows = [[_figure(entry.get(column, "")) for column in columns] for entry in found[:_MOST_LABELS]]
    more = f"\n\n{len(found) - _MOST_LABELS} more in report.json." if len(found) > _MOST_LABELS else ""
    return "## By label\n\n" + table([column.replace("_", " ") for column in columns], rows) + more


def _figure(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("value", "")
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _limits(manifest: Manifest) -> str:
    if manifest.task == "masked":
        return (
            "## Intended use and limits\n\n"
            "Gives no answers itself: a classifier for texts like those it has read begins with its weights and needs "
            "fewer labelled rows. What its texts take for granted, a classifier that begins here may take over."
        )
    if not manifest.labels:
        return (
            "## Intended use and limits\n\n"
            "Writes texts like those it learned from. It may be wrong, and may repeat what it has read; "
            "let a person judge it. The figures hold for the data they were measured on; measure again on your own: "
            f"`fastserve evaluate {_name(manifest)} --data FILE`."
        )
    return (
        "## Intended use and limits\n\n"
        f"Meant for texts like those it learned from, answered with the {len(manifest.labels)} labels above. A text of "
        "another kind, language or time still gets one of them, with a score that may be high. The figures hold for "
        "the data they were measured on; measure again on your own before you rely on them: "
        f"`fastserve evaluate {_name(manifest)} --data FILE`. Do not let it alone decide what matters to a person."
    )


def _usage(manifest: Manifest, report: Report | None) -> str:
    name = _name(manifest)
    samples = report.details.get("samples") if report is not None else None
    text = manifest.parity[0].text if manifest.parity else "your text"
    text = samples[0]["prompt"] if samples else text
    shown = " ".join(text.split())[:60].replace("`", "").replace("'", "").replace('"', "").replace("\\", "")
    if manifest.task == "masked":
        start = f"fastserve train --data LABELLED.tsv --task classification model.start={name}"
        return f"## How to use it\n\n```sh\n{start}\n```"
    if not manifest.labels:
        return _writing_usage(name, shown)
    body = json.dumps({"instances": [shown]}, ensure_ascii=False)
    return f"""## How to use it

```sh
fastserve predict {name} '{shown}'
fastserve serve {name} --port 8000
curl -s localhost:8000/v1/models/{name}:predict -H 'Content-Type: application/json' -d '{body}'
```

```python
import fastserve as fs

model = fs.load("{name}")
print(model.predict(["{shown}"]))
```"""


def _writing_usage(name: str, shown: str) -> str:
    return f"""## How to use it

```sh
fastserve predict {name} '{shown}'
fastserve chat {name}
```

```python
import fastserve as fs

model = fs.load("{name}")
print(model.write("{shown}", max_tokens=100)[0].text)
```

The folder also loads with `transformers.AutoModelForCausalLM.from_pretrained`."""


def _origin(manifest: Manifest) -> str:
    lineage = manifest.lineage
    rows = [
        ("made from", lineage.parent or ""),
        ("started", f"{lineage.started:%Y-%m-%d %H:%M} UTC" if lineage.started else ""),
        ("took", f"{lineage.duration_seconds:,.0f} s" if lineage.duration_seconds is not None else ""),
        ("seed", "" if lineage.seed is None else lineage.seed),
        ("with", ", ".join(f"{library} {version}" for library, version in lineage.versions.items())),
        ("weights SHA-256", f"`{manifest.model_sha256}`"),
    ]
    return "## Origin\n\n" + table(["", ""], [row for row in rows if row[1] != ""])
