"""The network as an ONNX graph, run by ONNX Runtime. No torch is imported."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.runtimes.base import file_of
from fastserve.bundle.runtimes.padded import logits_in_batches
from fastserve.errors import BundleError, MissingExtraError
from fastserve.types import Encoded, FloatArray, LongArray

PRECISION = "fastserve.precision"
"""Key of the graph's metadata: `fp32` or `int8`."""

TOKEN_BUDGET = 512
"""Most tokens at once. Measured on one core: 8 texts of 64 tokens are a quarter faster than one by one or 32."""


class OnnxRuntime:
    """Runs a graph of (input_ids, attention_mask) to logits."""

    name: ClassVar[str] = "onnx"

    def __init__(self, session: Any, token_budget: int) -> None:
        self.session = session
        self.token_budget = token_budget

    @classmethod
    def load(cls, bundle: Bundle, threads: int | None = None) -> Self:
        """threads: cores for one call; None takes every core. MissingExtraError, BundleError: no library, no graph."""
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("the runtime 'onnx'", "onnx") from error
        path = file_of(bundle, cls.name)
        try:
            session = onnxruntime.InferenceSession(
                path, _session_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's errors have no common class
            raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
        # a dynamic int8 graph scales by the largest value of a whole batch, so that neighbours would change an answer
        is_int8 = session.get_modelmeta().custom_metadata_map.get(PRECISION) == "int8"
        return cls(session, 0 if is_int8 else TOKEN_BUDGET)

    def logits(self, encoded: Encoded) -> FloatArray:
        """float32 (N, outputs), in the order of the rows."""
        return logits_in_batches(encoded["tokens"], self.token_budget, self._compute)

    def _compute(self, ids: LongArray, mask: LongArray) -> FloatArray:
        (found,) = self.session.run(None, {"input_ids": ids, "attention_mask": mask})
        return np.asarray(found, np.float32)


def _session_options(onnxruntime: Any, threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; its warnings are about how it optimizes
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other workers want the core
    return options
