"""The form of a network that an engine decodes with, and the adapters that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fastserve.generation.adapters import Adapters
from fastserve.generation.cache import RowCache
from fastserve.generation.fast_decoder import fast_form
from fastserve.generation.network import Decodes
from fastserve.generation.precision import Precision, lighter, unwrapped
from fastserve.generation.runner import Runner
from fastserve.models.causal import CausalNetwork


class Form(NamedTuple):
    """network: in a precision, with all adapters in it."""

    network: Decodes
    adapters: Adapters | None = None

    def runner(self, slots: int, books: RowCache | None = None) -> Runner:
        return Runner(self.network, slots, self.adapters, books)


def form_of(
    network: CausalNetwork, precision: Precision, folders: Mapping[str, Path], part: tuple[int, int] = (0, 1)
) -> Form:
    """folders: of LoRA adapters by name; part: (rank, processes), where the network is a share, all of whose processes
    call this together."""
    adapters = Adapters(network, folders, part) if folders else None
    wrap = unwrapped if adapters is None else adapters.wrap
    fast = fast_form(network, precision, wrap)
    if fast is not None:
        return Form(fast, adapters)
    plain = precision == "float32" and adapters is None
    return Form(network if plain else lighter(network, precision, wrap), adapters)
