"""Small model folders for the registry; nothing in them can answer, and nothing needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import DataSource, Lineage, NetworkSpec


class NoPipeline:
    def save(self, folder: Path) -> dict[str, Any]:
        (folder / "words.txt").write_text("好\n", "utf-8")
        return {"clean": ["nfkc"]}


def save_model(folder: Path, *, seed: int = 0, size: int = 50, **changes: Any) -> Bundle:
    """A whole model folder; `changes` go to save_bundle."""
    weights = {"w": np.random.default_rng(seed).standard_normal(size).astype(np.float32)}
    parts: dict[str, Any] = {
        "task": "classification",
        "labels": ("a", "b"),
        "network": NetworkSpec(name="bag", options={"dimension": 4}),
        "pipeline": NoPipeline(),
        "weights": weights,
        "metrics": {"accuracy": 0.5 + seed / 100},
        "lineage": Lineage(config={"train": {"seed": seed}}, data=(DataSource(address="a.tsv", rows=9),), seed=seed),
    }
    return save_bundle(folder, **{**parts, **changes})
