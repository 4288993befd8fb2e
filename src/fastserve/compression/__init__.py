"""A trained model in other forms, for faster runtimes. What makes them is here, what runs them in `bundle/runtimes`."""

from fastserve.compression.export import Exported, export, export_as, publish
from fastserve.compression.options import ExportOptions

__all__ = ["ExportOptions", "Exported", "export", "export_as", "publish"]
