"""The network as an OpenVINO model, run by OpenVINO on the processor. No torch is imported."""

from __future__ import annotations

import importlib
import sys
from typing import Any, ClassVar, Self

import numpy as np

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.runtimes.base import file_of
from fastserve.bundle.runtimes.padded import logits_in_batches
from fastserve.errors import BundleError, MissingExtraError
from fastserve.types import Encoded, FloatArray, LongArray

TOKEN_BUDGET = 512
"""Most tokens at once. Measured on one core: 8 texts of 64 tokens take a half less than one by one, 32 not less."""


class OpenVinoRuntime:
    """Runs a model of (input_ids, attention_mask) to logits. One call at a time."""

    name: ClassVar[str] = "openvino"

    def __init__(self, request: Any, token_budget: int = TOKEN_BUDGET) -> None:
        self.request = request
        self.token_budget = token_budget

    @classmethod
    def load(cls, bundle: Bundle, threads: int | None = None) -> Self:
        """threads: cores for one call; None takes every core. MissingExtraError, BundleError: no library, no model."""
        try:
            openvino = import_unwatched("openvino")
        except ImportError as error:
            raise MissingExtraError("the runtime 'openvino'", "openvino") from error
        path = file_of(bundle, cls.name)
        try:
            model = openvino.Core().compile_model(path, "CPU", _settings(threads))
        except Exception as error:  # the library's errors have no common class
            raise BundleError(f"OpenVINO {openvino.__version__} cannot load {path}: {error}") from error
        return cls(model.create_infer_request())

    def logits(self, encoded: Encoded) -> FloatArray:
        """float32 (N, outputs), in the order of the rows."""
        return logits_in_batches(encoded["tokens"], self.token_budget, self._compute)

    def _compute(self, ids: LongArray, mask: LongArray) -> FloatArray:
        found = self.request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True)
        return np.array(found["logits"], np.float32)  # a copy: the next call writes to the same memory


def _settings(threads: int | None) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads or 0,
        "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bf16 where the processor can, unlike what was checked
        "ENABLE_CPU_PINNING": False,  # else every worker process takes the same first cores
    }


def import_unwatched(library: str) -> Any:
    """`openvino` or `nncf`, imported so that it reports its use to nobody: both go without the package that does it."""
    reporter = "openvino_telemetry"
    known = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(library)
    finally:
        del sys.modules[reporter]
        if known is not None:
            sys.modules[reporter] = known
