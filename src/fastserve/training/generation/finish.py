"""After the last step: judge the kept weights, let them write, and save the bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fastserve.bundle.bundle import ADAPTER, Bundle, save_bundle
from fastserve.bundle.format import NetworkSpec, ParityRow
from fastserve.config import Config
from fastserve.data.shards import Shards
from fastserve.evaluation.checks import Check
from fastserve.evaluation.harness import win_rates
from fastserve.evaluation.html import report_html
from fastserve.evaluation.language import evaluate_language
from fastserve.models import lora
from fastserve.models.causal import CausalNetwork
from fastserve.models.network import HasFiles
from fastserve.models.ragged import RaggedTensor
from fastserve.tasks.preference import CHOSEN, REJECTED
from fastserve.tasks.token_loss import row_scores
from fastserve.training.generation.prepare import Prepared
from fastserve.training.generation.samples import samples
from fastserve.training.generation.setup import Setup, batches
from fastserve.training.loop import TrainingRun
from fastserve.training.origin import Origin
from fastserve.training.runs import RunFolder
from fastserve.training.start import reference_of
from fastserve.training.watchers import EVENTS, read_events
from fastserve.types import FloatArray, PlainText, Ragged, Report

PARITY_ROWS = 4
PARITY_CHARACTERS = 500


def finish(prepared: Prepared, run: TrainingRun, folder: RunFolder, origin: Origin) -> None:
    """Judge the network on the test rows (or else the validation rows); the leader saves it with its report."""
    held_out = prepared.test or prepared.validation
    scores, _ = run.scores(held_out, batches(held_out), exact=True)  # of pairs, targets matter to the loss alone
    weights = run.weights()
    if run.world.leads and not folder.finished:  # machines that this one was cut off from may have finished the run
        _save(prepared, folder, origin, scores, weights)


def _save(
    prepared: Prepared, folder: RunFolder, origin: Origin, scores: FloatArray, weights: Mapping[str, Tensor]
) -> Bundle:
    setup = Setup(origin.config, prepared)
    network = setup.network()
    network.load_state_dict(weights)
    network.eval()
    report = judge(prepared, scores, network)
    parity = parity_rows(prepared, network)
    parent = None if setup.start is None else reference_of(setup.start)
    lineage = origin.lineage().model_copy(update={"parent": parent})
    with tempfile.TemporaryDirectory(prefix="fastserve-adapter-") as adapter:
        apart = _kept_apart(network, origin.config, Path(adapter))
        return save_bundle(
            folder.bundle,
            task=origin.config.task,
            labels=(),
            network=NetworkSpec(name=prepared.network, options=setup.options, shape=setup.shape.to_json()),
            pipeline=prepared.pipeline,
            weights=lora.base_weights(network),
            report=report,
            report_html=report_html(
                report,
                title=origin.config.name or "Generation",
                history=read_events(folder.path / EVENTS),
                faults=prepared.faults,
                lineage=lineage.model_dump(mode="json"),
            ),
            parity=parity,
            lineage=lineage,
            extra_files={**(network.files() if isinstance(network, HasFiles) else {}), **apart},
        )


def _kept_apart(network: nn.Module, config: Config, folder: Path) -> dict[str, Path]:
    """The files of the adapters, which are merged into the weights where the user wants it."""
    if config.model.lora is None:
        return {}
    if config.model.merge:
        lora.merge(network)
        return {}
    lora.save_adapter(network, folder)
    return {f"{ADAPTER}/{path.name}": path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


def judge(prepared: Prepared, scores: FloatArray, network: nn.Module) -> Report:
    """The report on the held-out rows, with samples; of pairs of answers how often the better one wins."""
    held_out = prepared.test or prepared.validation
    texts, lines = texts_of(prepared, held_out), held_out.row_numbers
    checks: list[Check] = []
    if prepared.are_pairs:
        sizes = np.stack([held_out.lengths(name) for name in (CHOSEN, REJECTED)], 1)
        checks = win_rates(scores.astype(np.float64), sizes, texts, lines.tolist())
        scores = np.stack([-scores[:, 0], held_out.targets[:, 2].astype(np.float32)], 1)
    return evaluate_language(
        scores,
        held_out.targets[:, :2],
        texts=texts,
        rows=lines,
        samples=samples(prepared, network),
        checks=checks,
    )


def texts_of(prepared: Prepared, rows: Shards) -> list[str]:
    """What each row says."""
    decode = prepared.pipeline.tokenizer.decode
    return [
        decode(batch.inputs["tokens"].between(place, place + 1).values)
        for batch in rows.in_order(1024)
        for place in range(len(batch))
    ]


def parity_rows(prepared: Prepared, network: nn.Module) -> list[ParityRow]:
    """A few texts with the nats for each token that this network gives them, for whoever loads it to compare."""
    held_out = prepared.test or prepared.validation
    texts = [text[:PARITY_CHARACTERS] for text in texts_of(prepared, held_out)[:PARITY_ROWS] if text.strip()]
    rows = Ragged.from_rows(list(prepared.pipeline.encode_texts([PlainText(text) for text in texts])))
    rows = Ragged.from_rows([rows.between(i, i + 1).values[: prepared.context] for i in range(len(rows))])
    with torch.inference_mode():
        scores = row_scores(cast(CausalNetwork, network), RaggedTensor.from_ragged(rows)).numpy()
    nats = scores[:, 0] / np.maximum(scores[:, 1], 1)
    return [ParityRow(text=text, scores=(float(value),)) for text, value in zip(texts, nats, strict=True)]
