"""The seam of runtimes, and which one `auto` takes."""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar, Protocol, Self, cast

from fastserve.bundle.bundle import Bundle
from fastserve.plugins import RUNTIMES
from fastserve.types import Encoded, FloatArray

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

    auto: `table` where it can run the network; else the first other form in the bundle that passed its accuracy check
    and whose library is installed; else torch.
    """
    chosen = _choose(bundle) if name == "auto" else name
    return cast(Runtime, RUNTIMES.load(chosen).load(bundle, threads=threads))


def _choose(bundle: Bundle) -> str:
    network = bundle.manifest.network
    table: Any = RUNTIMES.load("table")
    if table.supports(network.name, network.options):
        return "table"
    for name, form in bundle.manifest.runtimes.items():
        if form.passed and _is_installed(name):
            return name
    return "torch"


def _is_installed(runtime: str) -> bool:
    return importlib.util.find_spec(_LIBRARIES.get(runtime, runtime)) is not None
