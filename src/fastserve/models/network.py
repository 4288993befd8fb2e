"""The seam between networks and everything that trains, saves or runs them, and the one door that builds them.

A network is an `nn.Module` class that follows `NetworkKind` (as a class) and `Network` (as an object). A local Hugging
Face folder and a user's own torch module are made to follow them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from fastserve import config, plugins
from fastserve.config import Section
from fastserve.errors import ConfigError, NotFoundError
from fastserve.models.builtin import BUILTIN, Reads
from fastserve.types import Encoded, ParameterGroup, Recipe, TextPreferences

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastserve.models.ragged import RaggedTensor


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What the data decides about a network: how many ids each encoding has, and how many logits a row gets.

    exclusive: a row has exactly one label, so that of two labels the one's score is the other's with the sign changed.
    """

    vocabulary: Mapping[str, int]
    outputs: int
    exclusive: bool = False

    @property
    def columns(self) -> int:
        """How many scores a linear model has to learn; `ngram_table.both_sides` makes logits of them."""
        return 1 if self.exclusive and self.outputs == 2 else self.outputs

    def to_json(self) -> dict[str, Any]:
        return {"vocabulary": dict(self.vocabulary), "outputs": self.outputs, "exclusive": self.exclusive}


class NetworkKind(Protocol):
    """What is known of a network before it is built. A network's class is one; so is a folder with weights."""

    @property
    def encodings(self) -> tuple[str, ...]:
        """Encodings that forward() reads."""
        ...

    @property
    def preferences(self) -> TextPreferences: ...

    @property
    def Options(self) -> type[Section]: ...

    def __call__(self, options: Any, shape: NetworkShape, /) -> nn.Module: ...

    def recipe(self, rows: int, outputs: int) -> Recipe:
        """What `auto` means in training on `rows` rows with `outputs` labels."""
        ...


class Network(Protocol):
    """A built network."""

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        """Logits (B, outputs). A row's logits do not depend on its neighbours; an empty row has finite ones too."""
        ...


@runtime_checkable
class HasStatistics(Protocol):
    """A network that learns from counts before the first step; what it learns is kept in its state dict."""

    def fit_statistics(self, encoded: Iterable[tuple[Encoded, Any]]) -> None:
        """Look once at the training set: blocks of encoded rows with their targets (`Batch.targets`)."""
        ...


@runtime_checkable
class HasSparseGradients(Protocol):
    """A network with big tables of which a batch touches few rows.

    `sparse_gradients` is False when built: gradients are dense and any optimizer works. A trainer whose optimizer takes
    the touched rows alone sets it to True: gradients are then `torch.sparse_coo` with one sparse dimension, whose
    indices are distinct and ascending (although `is_coalesced()` says no: torch forgets the mark), except that those of
    a parameter in a group of plain gradient descent, or that accumulates gradients, may repeat.
    """

    sparse_gradients: bool

    def sparse_parameters(self) -> list[str]:
        """Names, as in `named_parameters()`, of the tables."""
        ...


@runtime_checkable
class HasOwnLoss(Protocol):
    """A network whose parts are trained by losses of their own (a linear part by a hinge, a deep part by entropy)."""

    def loss(self, inputs: Mapping[str, RaggedTensor], targets: Tensor, task: Any, rows: int | None = None) -> Tensor:
        """The mean loss of a batch. task: `tasks.Classification`, for its smoothing, class weights and multi_label.

        rows: of the whole step, where the batch is one worker's part of it.
        """
        ...


@runtime_checkable
class HasParameterGroups(Protocol):
    """A network whose parts want optimizers or learning rates of their own."""

    def parameter_groups(self) -> Iterable[ParameterGroup]:
        """Parameters that none of the groups names are trained as the recipe says."""
        ...


@runtime_checkable
class HasFirstValues(Protocol):
    """A network that can be built on the meta device, without memory, and told its first weights one after the other.

    So one that is larger than the memory of a worker starts: each keeps its shard of a weight and lets the rest go.
    """

    def first_values(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every parameter and buffer, drawn at random exactly as the constructor draws them."""
        ...


@runtime_checkable
class HasFixedInputs(Protocol):
    """A network whose first steps do not change in training, so that a trainer may take them once for all epochs."""

    def precompute(self, inputs: Encoded) -> Encoded:
        """The inputs after those steps, under other names where they differ; forward() takes either."""
        ...


@runtime_checkable
class HasFiles(Protocol):
    """A network that needs more than its options to be built again."""

    def files(self) -> dict[str, str]:
        """File name to content, to be written beside the weights; `build(..., saved_in=folder)` reads them there."""
        ...


@runtime_checkable
class HasWordEmbeddings(Protocol):
    """A network into whose table word vectors can be loaded (`models.embeddings`)."""

    def word_embeddings(self) -> nn.Parameter:
        """float32 (vocabulary of "tokens", dimension)"""
        ...


MANY_ROWS = 20_000


def resolve(name: str, rows: int) -> str:
    """The network that `auto` means for so many training rows; any other name is itself.

    With many rows convolutions add nothing to two linear models; with few they do, and the second model does not.
    """
    if name != "auto":
        return name
    return "linear" if rows >= MANY_ROWS else "wide-deep"


def find(name: str, *, saved_in: Path | None = None, causal: bool | None = False) -> NetworkKind:
    """The network that a user named, before it is built.

    name: one of `plugins.NETWORKS`, a local Hugging Face folder, or `module:Class`.
    saved_in: a folder that holds the network's own files (`HasFiles`); then the folder that `name` says is not needed.
    causal: whether it is to write text (`models.causal.CausalNetwork`); else it gives each row some outputs. None takes
    either, and of a folder what its configuration says that it was.
    NotFoundError where there is no such network, ConfigError where it is of the other sort.
    """
    if saved_in is not None and (saved_in / "config.json").is_file() and name not in plugins.NETWORKS.names():
        return _saved(name, saved_in, causal)
    if (Path(name) / "config.json").is_file():
        return _folder(Path(name), causal)
    if os.sep in name or Path(name).is_dir():
        raise NotFoundError(
            f"network '{name}': there is no folder of that name with a config.json. Expected a local Hugging Face "
            f"folder (nothing is downloaded), module:Class, or one of {', '.join(plugins.NETWORKS.names())}"
        )
    kind = _as_kind(name, plugins.NETWORKS.load(name))
    _check_sort(name, hasattr(kind, "hidden"), causal)
    return kind


def reads(name: str, *, causal: bool = False) -> Reads:
    """What the network that a user named reads; torch is imported only for one that is not built in.

    Errors as of `find`.
    """
    if name in BUILTIN:
        _check_sort(name, BUILTIN[name].causal, causal)
        return BUILTIN[name]
    kind = find(name, causal=causal)
    return Reads(kind.encodings, kind.preferences, causal)


def build(
    name: str,
    options: Mapping[str, Any],
    shape: NetworkShape,
    *,
    saved_in: Path | None = None,
    causal: bool = False,
) -> nn.Module:
    """A new network with random weights (or those of the folder that `name` is).

    saved_in: build what was saved there, to be given its weights by `load_state_dict`. causal: as of `find`.
    ConfigError names an unknown or wrong option; NotFoundError a name that does not exist.
    """
    kind = find(name, saved_in=saved_in, causal=causal)
    return kind(config.check(kind.Options, options, f"model.options of '{name}'"), shape)


def _saved(name: str, folder: Path, causal: bool | None) -> NetworkKind:
    if ":" in name and not (Path(name) / "config.json").is_file():
        return find(name, causal=causal)
    return _folder(folder, causal, weights=False)


def _folder(folder: Path, causal: bool | None, *, weights: bool = True) -> NetworkKind:
    if causal or (causal is None and re.search("CausalLM|LMHead", (folder / "config.json").read_text("utf-8"))):
        from fastserve.models.causal_folder import CausalFolder

        return CausalFolder(folder, weights=weights)
    from fastserve.models.pretrained import PretrainedFolder

    return PretrainedFolder(folder, weights=weights)


def _check_sort(name: str, is_causal: bool, wanted: bool | None) -> None:
    if wanted is not None and is_causal != wanted:
        does, others = ("writes text", "labels it") if is_causal else ("labels text", "writes it")
        fitting = [name for name, reads in BUILTIN.items() if reads.causal == wanted]
        raise ConfigError(
            f"network '{name}' {does}, but the task needs one that {others}: {', '.join(fitting)}, a local Hugging "
            f"Face folder, or your own as module:Class"
        )


def _as_kind(name: str, found: Any) -> NetworkKind:
    if all(hasattr(found, part) for part in ("encodings", "preferences", "Options", "recipe")):
        return cast(NetworkKind, found)
    from fastserve.models.own import OwnModule

    return OwnModule(name, found)
