"""Where models live: versions, aliases, lineage, export and import."""

from fastserve.registry.registry import Registry
from fastserve.registry.store import Version

__all__ = ["Registry", "Version"]
