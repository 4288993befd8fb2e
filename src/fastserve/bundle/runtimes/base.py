"""The seam of runtimes, and which one `auto` takes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

from fastserve import device
from fastserve.bundle.bundle import Bundle
from fastserve.bundle.format import RuntimeFile
from fastserve.errors import BundleError
from fastserve.plugins import RUNTIMES
from fastserve.types import Encoded, FloatArray

SPEED = "speed"
"""Among the figures of a form's check: how many times as fast as the usual runtime it was."""
_LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}


class Runtime(Protocol):
    """Turns encoded texts into logits. A row's logits do not depend on the rows beside it (to 1e-5)."""

    name: ClassVar[str]

    @classmethod
    def load(cls, bundle: Bundle, threads: int | None = None) -> Self:
        """Make the network of `bundle` ready. threads: cores for one call; None leaves it to the runtime."""
        ...

    def logits(self, encoded: Encoded) -> FloatArray:
        """float32 (N, outputs) for N encoded texts."""
        ...


def choose_runtime(bundle: Bundle, name: str = "auto", *, threads: int | None = None) -> Runtime:
    """The runtime called `name`, loaded. NotFoundError lists the names that exist.

    auto: the fastest that is known to answer as well as the weights do, see `automatic`.
    """
    chosen = automatic(bundle) if name == "auto" else name
    return cast(Runtime, RUNTIMES.load(chosen).load(bundle, threads=threads))


def automatic(bundle: Bundle) -> str:
    """The name of the runtime that `auto` means for `bundle` on this machine.

    Of the forms in the bundle that passed their accuracy check, whose library is installed, and that were faster than
    the usual runtime when they were made, the fastest; else the usual one. A GPU is only used by torch and is taken as
    faster than any form for the processor.
    """
    default = usual(bundle)
    speeds = {
        name: speed
        for name, form in bundle.manifest.runtimes.items()
        if form.passed and _is_installed(name) and (speed := _speed(form, default)) > 1
    }
    if not speeds or (default == "torch" and device.has_gpu()):
        return default
    return max(speeds, key=lambda name: speeds[name])


def usual(bundle: Bundle) -> str:
    """What answers without any other form: `table` where it can run the network, else torch."""
    network = bundle.manifest.network
    table: Any = RUNTIMES.load("table")
    return "table" if table.supports(network.name, network.options) else "torch"


def _speed(form: RuntimeFile, default: str) -> float:
    """How many times as fast as the usual runtime; where it was not measured, tables are faster and torch is slower."""
    return form.check.get(SPEED, 0.0 if default == "table" else 1.1)


def file_of(bundle: Bundle, runtime: str) -> Path:
    """The file of the network in the form that `runtime` reads. BundleError where the bundle has none."""
    form = bundle.manifest.runtimes.get(runtime)
    if form is None:
        raise BundleError(
            f"{bundle.folder} does not hold the network in the form that the runtime '{runtime}' reads; make a version "
            f"that does: fastserve export MODEL --runtime {runtime}"
        )
    return bundle.folder / form.file


def _is_installed(runtime: str) -> bool:
    return importlib.util.find_spec(_LIBRARIES.get(runtime, runtime)) is not None
