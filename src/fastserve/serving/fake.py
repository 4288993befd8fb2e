"""A model that costs nothing, for tests of servers and clients without training one.

A fake model is a folder with `fake.json`: {"labels": [...], "seconds": 0.0, "multi_label": false, "shift": 0.0}. Its
answer depends on the text alone. Names are kept as the registry keeps them, so that aliases can be tried too:
`HOME/models/NAME/VERSION/fake.json` and `HOME/models/NAME/aliases.json`. A folder with `fake_writer.json` is a fake
that writes (`generation/fake.py`).
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastserve.config import Section
from fastserve.errors import BundleError, NotFoundError
from fastserve.serving.deployment import Deployment, Place
from fastserve.serving.generation.deployment import deploy_writer
from fastserve.serving.generation.fake import SETTINGS, WRITERS
from fastserve.serving.labels import deploy_labels
from fastserve.serving.model import ParityRow
from fastserve.serving.options import ServeOptions
from fastserve.tasks.classification import Classification
from fastserve.types import FloatArray, Prediction

CRASH, HANG, FAIL = "crash!", "hang!", "fail!"


class FakeSettings(Section):
    """The content of `fake.json`."""

    labels: tuple[str, ...] = ("negative", "positive")
    seconds: float = 0.0
    """What each text costs (slept)."""
    multi_label: bool = False
    shift: float = 0.0
    """Moves the scores away from the ones in the parity rows, as a broken conversion would."""
    load_error: str | None = None
    load_seconds: float = 0.0
    load_crash: bool = False


class FakeModel:
    """Scores that follow from a checksum of the text. The texts `crash!`, `hang!` and `fail!` do what they say."""

    runtime = "fake"
    tolerance = 1e-4
    max_length = 512

    def __init__(self, settings: FakeSettings) -> None:
        self.settings = settings
        self.labels: Sequence[str] = settings.labels
        self.multi_label = settings.multi_label
        self._task = Classification(settings.labels, multi_label=settings.multi_label)

    @property
    def parity(self) -> Sequence[ParityRow]:
        texts = ["很好", "a made-up row", "质量不错，物流很快"]
        return [ParityRow(text, dict(zip(self.labels, map(float, self._pure(text)), strict=True))) for text in texts]

    def scores(self, texts: Sequence[str]) -> FloatArray:
        for text in texts:
            self._obey(text)
        if self.settings.seconds:
            time.sleep(self.settings.seconds * len(texts))
        return np.stack([self._pure(text) for text in texts]) + np.float32(self.settings.shift)

    def decode(self, scores: FloatArray) -> list[Prediction]:
        return self._task.decode(scores)

    def _pure(self, text: str) -> FloatArray:
        values = np.array([1 + zlib.crc32(f"{label}:{text}".encode()) % 1000 for label in self.labels], np.float32)
        return values / (np.float32(1001) if self.multi_label else values.sum())

    @staticmethod
    def _obey(text: str) -> None:
        if text == CRASH:
            os._exit(70)
        if text == HANG:
            time.sleep(3600)
        if text == FAIL:
            raise ValueError("this text was made to fail")


class FakeSource:
    """Finds and loads fake models below `$FASTSERVE_HOME`."""

    def __init__(self, options: ServeOptions) -> None:
        self.home = Path(os.environ.get("FASTSERVE_HOME", "."))

    def resolve(self, reference: str) -> Path:
        folder = Path(reference)
        if (folder / "fake.json").is_file() or (folder / SETTINGS).is_file():
            return folder
        name, _, version = reference.partition("@")
        root = self.home / "models" / name
        if not version.isdigit():
            try:
                version = str(json.loads((root / "aliases.json").read_text("utf-8"))[version or "latest"])
            except (OSError, KeyError) as error:
                raise NotFoundError(f"no fake model '{reference}' in {self.home}") from error
        return root / version

    async def deploy(self, folder: Path, place: Place) -> Deployment:
        if (folder / SETTINGS).is_file():
            return await deploy_writer(folder, place, WRITERS)
        return await deploy_labels(self.load, folder, place)

    def load(self, folder: Path) -> FakeModel:
        settings = FakeSettings.model_validate_json((folder / "fake.json").read_text("utf-8"))
        time.sleep(settings.load_seconds)
        if settings.load_crash:
            os._exit(70)
        if settings.load_error:
            raise BundleError(settings.load_error)
        return FakeModel(settings)
