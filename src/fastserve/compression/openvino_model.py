"""An ONNX graph as an OpenVINO model, in fp32 or static int8 (calibrated on texts)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastserve.bundle.runtimes.padded import pad
from fastserve.errors import MissingExtraError
from fastserve.types import Ragged

_TELEMETRY = "openvino_telemetry"


def check_installed(*, int8: bool) -> None:
    """MissingExtraError unless models can be written here."""
    try:
        import openvino  # noqa: F401

        if int8:
            _nncf()
    except ImportError as error:
        raise MissingExtraError(f"exporting to OpenVINO{' in int8' if int8 else ''}", "compress") from error


def write_model(graph: Path, path: Path, calibration: Ragged | None) -> None:
    """Write the ONNX graph as `path` (.xml) and the weights beside it (.bin).

    calibration: tokens of texts whose activations set the scales of int8; None writes fp32.
    """
    import openvino

    model = openvino.Core().read_model(graph)
    if calibration is not None:
        model = _quantized(model, calibration)
    openvino.save_model(model, path, compress_to_fp16=False)


def _quantized(model: Any, calibration: Ragged) -> Any:
    nncf = _nncf()
    parameters = nncf.AdvancedQuantizationParameters(
        # weights take 7 of the 8 bits, so that processors without VNNI do not overflow and compute the same numbers
        overflow_fix=nncf.OverflowFix.ENABLE
    )
    texts = [calibration.take(row) for row in _single_rows(calibration)]
    return nncf.quantize(
        model,
        nncf.Dataset(texts, _as_inputs),
        subset_size=len(texts),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=parameters,
    )


def _single_rows(tokens: Ragged) -> list[Any]:
    import numpy as np

    return np.array_split(np.arange(len(tokens)), len(tokens))


def _as_inputs(text: Ragged) -> dict[str, Any]:
    ids, mask = pad(text)
    return {"input_ids": ids, "attention_mask": mask}


def _nncf() -> Any:
    """The library, imported so that it sends nobody a report about its use."""
    with _without(_TELEMETRY):
        nncf = importlib.import_module("nncf")
    nncf.set_log_level(40)  # errors
    return nncf


@contextmanager
def _without(module: str) -> Iterator[None]:
    """A module that cannot be imported; the libraries that want it then go without."""
    kept = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if kept is not None:
            sys.modules[module] = kept
