"""Writes the network of a bundle in the form that another runtime reads."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.runtimes.torch import build_network
from fastserve.compression import onnx_graph, openvino_model
from fastserve.compression.options import ExportOptions
from fastserve.compression.padded import padded_form
from fastserve.config import DataConfig
from fastserve.data.dataset import open_dataset
from fastserve.errors import UserError
from fastserve.models.pretrained import PretrainedEncoder
from fastserve.types import Ragged

FILES = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin")}
"""What a form consists of; the first is the one that its runtime is given."""

LIBRARIES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
CALIBRATION_TEXTS = 300


def check_possible(options: ExportOptions) -> None:
    """MissingExtraError where a library is not here, UserError where int8 has nothing to be checked on."""
    if options.int8 and options.data is None:
        raise UserError(
            "int8 changes what a model answers, so it needs labelled texts to be checked on (and OpenVINO to be "
            "calibrated with): add --data FILE"
        )
    onnx_graph.check_installed()
    if options.runtime == "openvino":
        openvino_model.check_installed(int8=options.int8)


def write_form(bundle: Bundle, folder: Path, options: ExportOptions) -> None:
    """Write `FILES` of the runtime into `folder`, replacing what is there.

    ConfigError where networks of this kind have no such form, WorkError where this one cannot be followed.
    """
    name = bundle.manifest.network.name
    network = build_network(bundle)
    longest = longest_text(bundle, network)
    form = padded_form(network, name, longest)
    target = folder / FILES[options.runtime][0]
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "graph.onnx"
        onnx_graph.write_graph(form, graph, longest=longest, name=name)
        if options.runtime == "openvino":
            openvino_model.write_model(graph, target, _calibration(bundle, options) if options.int8 else None)
        elif options.int8:
            onnx_graph.quantize_graph(graph, target)
        else:
            shutil.copyfile(graph, target)


def longest_text(bundle: Bundle, network: nn.Module) -> int:
    """Most tokens of a text: where the text pipeline cuts, or what the positions of `network` reach."""
    cut = max(bundle.pipeline.max_length, onnx_graph.EXAMPLE_LENGTH)
    return min(cut, network.longest) if isinstance(network, PretrainedEncoder) else cut


def _calibration(bundle: Bundle, options: ExportOptions) -> Ragged:
    """Tokens of some texts of the data, the same ones every time."""
    dataset = open_dataset(str(options.data), DataConfig(columns=options.columns), labelled=False)
    texts = sample((text for block in dataset.blocks() for text in block.texts), CALIBRATION_TEXTS)
    return bundle.pipeline.encode(texts)["tokens"]


def sample(texts: Iterable[str], most: int, seed: int = 0) -> list[str]:
    """At most `most` of `texts`, each equally likely, read once (algorithm R of Vitter 1985)."""
    generator = random.Random(seed)
    kept: list[str] = []
    for number, text in enumerate(texts):
        if number < most:
            kept.append(text)
        elif (place := generator.randrange(number + 1)) < most:
            kept[place] = text
    return kept
