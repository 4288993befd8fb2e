"""Where a worker gets its models."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fastserve.serving.deployment import Deployment, Place


class ModelSource(Protocol):
    """Finds and deploys models. Its constructor takes the ServeOptions."""

    def resolve(self, reference: str) -> Path:
        """The folder that `reference` (`name`, `name@3`, `name@production`, a folder) means now."""

    async def deploy(self, folder: Path, place: Place) -> Deployment:
        """The model in `folder`, loaded and ready to be judged. FastServeError where it cannot serve."""
