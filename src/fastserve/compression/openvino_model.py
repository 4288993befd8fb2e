"""An ONNX graph as an OpenVINO model, in fp32 or static int8 (calibrated on texts)."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.bundle.runtimes.openvino import import_unwatched
from fastserve.bundle.runtimes.padded import pad
from fastserve.errors import MissingExtraError
from fastserve.types import Ragged


def check_installed(*, int8: bool) -> None:
    """MissingExtraError unless models can be written here."""
    try:
        import_unwatched("openvino")
        if int8:
            _nncf()
    except ImportError as error:
        raise MissingExtraError(f"exporting to OpenVINO{' in int8' if int8 else ''}", "compress") from error


def write_model(graph: Path, path: Path, calibration: Ragged | None) -> None:
    """Write the ONNX graph as `path` (.xml) and the weights beside it (.bin).

    calibration: tokens of texts whose activations set the scales of int8; None writes fp32.
    """
    openvino = import_unwatched("openvino")
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
    texts = [calibration.take(np.array([row])) for row in range(len(calibration))]
    with redirect_stdout(sys.stderr):  # its progress bars; standard output belongs to results
        return nncf.quantize(
            model,
            nncf.Dataset(texts, _as_inputs),
            subset_size=len(texts),
            model_type=nncf.ModelType.TRANSFORMER,
            advanced_parameters=parameters,
        )


def _as_inputs(text: Ragged) -> dict[str, Any]:
    ids, mask = pad(text)
    return {"input_ids": ids, "attention_mask": mask}


def _nncf() -> Any:
    nncf = import_unwatched("nncf")
    nncf.set_log_level(40)  # errors
    return nncf
