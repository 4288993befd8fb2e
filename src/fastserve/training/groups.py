"""Which parameters of a network are trained by which optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import nn

from fastserve.errors import ConfigError
from fastserve.models.network import HasParameterGroups, HasSparseGradients
from fastserve.types import ParameterGroup, Recipe


def groups_of(network: nn.Module, recipe: Recipe, names: Iterable[str]) -> Iterator[ParameterGroup]:
    """The groups that the network asks for, and the rest of its parameters as the recipe says.

    ConfigError where the recipe asks for muon and there is no matrix for it.
    """
    left = dict.fromkeys(names)
    if isinstance(network, HasParameterGroups):
        for group in network.parameter_groups():
            kept = tuple(name for name in group.parameters if name in left)
            for name in kept:
                del left[name]
            if kept:
                yield replace(group, parameters=kept)
    if recipe.optimizer != "muon":
        if left:
            yield ParameterGroup(tuple(left), optimizer=recipe.optimizer, weight_decay=recipe.weight_decay)
        return
    found = hidden_matrices(network)
    matrices = tuple(name for name in left if name in found)
    if not matrices:
        raise ConfigError(
            f"train.optimizer=muon is for matrices of hidden layers, and {type(network).__name__} has none that are "
            "trained: use adamw"
        )
    rate = recipe.matrix_rate / recipe.learning_rate
    yield ParameterGroup(matrices, rate=rate, optimizer="muon", weight_decay=recipe.weight_decay)
    if rest := tuple(name for name in left if name not in found):
        yield ParameterGroup(rest, optimizer="adamw", weight_decay=recipe.weight_decay)


def hidden_matrices(network: nn.Module) -> set[str]:
    """Names of the parameters that map what is hidden to what is hidden.

    Two dimensions, and of no embedding, nor of the head: the module `head` of the network, else its last linear one.
    """
    head = getattr(network, "head", None)
    if not isinstance(head, nn.Module):
        head = next((module for module in reversed(list(network.modules())) if isinstance(module, nn.Linear)), None)
    embeddings = [module for module in network.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    outer = {id(p) for module in (head, *embeddings) if module is not None for p in module.parameters()}
    tables = set(network.sparse_parameters()) if isinstance(network, HasSparseGradients) else set()
    return {
        name
        for name, parameter in network.named_parameters()
        if parameter.dim() == 2 and id(parameter) not in outer and name not in tables
    }


def use_sparse_gradients(network: nn.Module) -> set[str]:
    """Names of the network's big tables, which from now on give row-sparse gradients."""
    if not isinstance(network, HasSparseGradients):
        return set()
    network.sparse_gradients = True
    return set(network.sparse_parameters())
