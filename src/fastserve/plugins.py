"""Name tables: what stands behind each name that a user may write. Nothing is imported before it is named.

A new network, task, segmenter or runtime is one file and one line here. Other packages add theirs by an entry point in
the group that the table names; a user's own class needs neither and is written `module:Class`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastserve.errors import MissingExtraError, NotFoundError, choices


@dataclass(frozen=True)
class NameTable:
    """Names of one kind. `room` is the folder that holds the built-in ones; only it and higher rows may load them."""

    kind: str
    room: str
    builtin: Mapping[str, str]

    @property
    def group(self) -> str:
        return f"fastserve.{self.kind}"

    def names(self) -> list[str]:
        """Every name that can be loaded without writing `module:Class`."""
        return sorted({*self.builtin, *(point.name for point in importlib.metadata.entry_points(group=self.group))})

    def load(self, name: str) -> Any:
        """The object behind `name`. NotFoundError lists the names that exist."""
        if name in self.builtin:
            return import_object(self.builtin[name])
        for point in importlib.metadata.entry_points(group=self.group, name=name):
            return point.load()
        if ":" in name:
            return self._load_own(name)
        raise NotFoundError(
            f"no {self.kind} is called '{name}': {choices(name, self.names())}, or your own as module:Class"
        )

    def load_optional(self, name: str, doing: str) -> Any:
        """The object behind `name`, which may need the extra of that name. MissingExtraError says what needs it."""
        try:
            return self.load(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "fastserve":
                raise
            raise MissingExtraError(f"{doing} on '{name}'", name) from error

    def _load_own(self, name: str) -> Any:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # a console script, unlike `python -m`, does not look in the working folder
        try:
            return import_object(name)
        except (ImportError, AttributeError) as error:
            raise NotFoundError(
                f"{self.kind} '{name}' cannot be imported: {error}. Expected module:Class, installed or in this folder"
            ) from error


def import_object(address: str) -> Any:
    """The object at `module:attribute`."""
    module, _, attribute = address.partition(":")
    return getattr(importlib.import_module(module), attribute)


NETWORKS = NameTable(
    "network",
    "models",
    {
        "linear": "fastserve.models.linear:Linear",
        "wide-deep": "fastserve.models.wide_deep:WideDeep",
        "bag": "fastserve.models.bag:Bag",
        "mlp": "fastserve.models.mlp:Mlp",
        "textcnn": "fastserve.models.textcnn:TextCnn",
        "lstm": "fastserve.models.lstm:Lstm",
        "transformer": "fastserve.models.encoder:TransformerEncoder",
        "decoder-15m": "fastserve.models.decoder_sizes:Decoder15m",
        "decoder-125m": "fastserve.models.decoder_sizes:Decoder125m",
        "decoder-1b": "fastserve.models.decoder_sizes:Decoder1b",
    },
)

TASKS = NameTable(
    "task",
    "tasks",
    {
        "classification": "fastserve.tasks.classification:Classification",
        "generation": "fastserve.tasks.generation:Generation",
        "masked": "fastserve.tasks.masked:Masked",
    },
)

COURSES = NameTable(
    "course",
    "training",
    {
        "classification": "fastserve.training.classification.course:ClassificationCourse",
        "generation": "fastserve.training.generation.course:GenerationCourse",
        "masked": "fastserve.training.masked.course:MaskedCourse",
    },
)
"""What a task does before and after the training loop; the names are those of tasks."""

CLEANERS = NameTable(
    "cleaning step",
    "text",
    {
        "html": "fastserve.text.clean:strip_html",
        "urls": "fastserve.text.clean:remove_urls",
        "emails": "fastserve.text.clean:remove_emails",
        "control": "fastserve.text.clean:remove_control",
        "nfkc": "fastserve.text.clean:normalize",
        "repeats": "fastserve.text.clean:shorten_repeats",
        "whitespace": "fastserve.text.clean:collapse_whitespace",
        "simplified": "fastserve.text.clean:simplify",
    },
)

SEGMENTERS = NameTable(
    "segmenter",
    "text",
    {
        "jieba": "fastserve.text.segment:JiebaSegmenter",
        "character": "fastserve.text.segment:CharacterSegmenter",
        "whitespace": "fastserve.text.segment:WhitespaceSegmenter",
    },
)

RUNTIMES = NameTable(
    "runtime",
    "bundle",
    {
        "torch": "fastserve.bundle.runtimes.torch:TorchRuntime",
        "table": "fastserve.bundle.runtimes.table:TableRuntime",
        "onnx": "fastserve.bundle.runtimes.onnx:OnnxRuntime",
        "openvino": "fastserve.bundle.runtimes.openvino:OpenVinoRuntime",
    },
)

STRATEGIES = NameTable(
    "strategy",
    "distributed",
    {
        "ddp": "fastserve.distributed.ddp:Ddp",
        "fsdp": "fastserve.distributed.fsdp:Fsdp",
        "diloco": "fastserve.distributed.diloco:Diloco",
    },
)

LAUNCHERS = NameTable(
    "launcher",
    "distributed",
    {
        "local": "fastserve.distributed.launch:Elastic",
        "ray": "fastserve.distributed.ray:OnRay",
    },
)

POLICIES = NameTable(
    "policy",
    "generation",
    {
        "fcfs": "fastserve.generation.policies.fcfs:Fcfs",
        "priority": "fastserve.generation.policies.priority:Priority",
        "sj-mlfq": "fastserve.generation.policies.sj_mlfq:SkipJoinMlfq",
        "hrrn": "fastserve.generation.policies.hrrn:Hrrn",
        "boost": "fastserve.generation.policies.boost:Boost",
    },
)

FLEETS = NameTable(
    "fleet",
    "serving",
    {
        "local": "fastserve.serving.routing.fleet:serve_replicas",
        "ray": "fastserve.serving.routing.ray_serve:serve_replicas",
    },
)
"""Who has the replicas of a server; the names are those of launchers."""

ALL = (NETWORKS, TASKS, COURSES, CLEANERS, SEGMENTERS, RUNTIMES, STRATEGIES, LAUNCHERS, FLEETS, POLICIES)
