"""Bundles as served models, found by the registry's names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.predictor import PARITY_TOLERANCE, Predictor
from fastserve.serving.deployment import Deployment, Place
from fastserve.serving.labels import deploy_labels
from fastserve.serving.model import ParityRow
from fastserve.serving.options import ServeOptions

_MAX_LENGTH = 512  # where the pipeline does not say


class BundleModel:
    """A predictor with the properties that a server asks for."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        manifest = predictor.bundle.manifest
        self.labels: Sequence[str] = manifest.labels
        self.multi_label = manifest.multi_label
        self.tolerance = PARITY_TOLERANCE
        self.max_length = int(manifest.text.get("max_length") or _MAX_LENGTH)
        self.scores = predictor.scores
        self.decode = predictor.task.decode

    @property
    def runtime(self) -> str:
        return self.predictor.runtime.name

    @property
    def parity(self) -> Sequence[ParityRow]:
        rows = self.predictor.bundle.manifest.parity_of(self.runtime)
        return [ParityRow(row.text, dict(zip(self.labels, row.scores, strict=True))) for row in rows]


class BundleSource:
    """Finds bundles through the registry."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options

    def resolve(self, reference: str) -> Path:
        from fastserve.registry import Registry

        return Registry().resolve(reference)

    async def deploy(self, folder: Path, place: Place) -> Deployment:
        """As the bundle's task says."""
        task = Bundle.load(folder, verify=False).manifest.task
        if task == "generation":
            from fastserve.serving.generation.deployment import deploy_writer

            return await deploy_writer(folder, place)
        return await deploy_labels(self._load, folder, place)

    def _load(self, folder: Path) -> BundleModel:
        predictor = Predictor(Bundle.load(folder), self.options.runtime, threads=self.options.threads)
        return BundleModel(predictor.warm())
