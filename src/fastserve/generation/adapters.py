"""LoRA adapters of one network side by side: each token gets what its text's adapter adds, in the same step.

The base is computed for all tokens at once; only the low-rank part is computed adapter by adapter, for its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastserve.errors import ConfigError
from fastserve.generation.precision import Linear
from fastserve.generation.sending import send
from fastserve.models.lora import PREFIX, WEIGHTS
from fastserve.models.tensor_parallel import share_of_change

CONFIG = "adapter_config.json"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
PLAIN: dict[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "lora_bias": False,
}
"""What is asked of an adapter's configuration, where it says anything about it."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """down (rank, in), up (out, rank), the latter times the adapter's scale."""

    down: Tensor
    up: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        return tokens @ self.down.t() @ self.up.t()


class Adapters:
    """network: which they are for; folders: by name, as `peft` writes them; part: (rank, processes), where the network
    is this process's share of one.

    ConfigError for a folder that is none or does not fit the network.
    """

    def __init__(self, network: Any, folders: Mapping[str, Path], part: tuple[int, int] = (0, 1)) -> None:
        self._paths = {id(module): name for name, module in network.named_modules()}
        sizes = {
            name: module for name, module in network.named_modules() if getattr(module, "weight", None) is not None
        }
        self._tables = {name: _read(folder, sizes, part) for name, folder in folders.items()}
        self._layout: list[tuple[str, Tensor]] = []

    @property
    def names(self) -> list[str]:
        return sorted(self._tables)

    def arrange(self, adapters: Sequence[str | None], device: torch.device) -> None:
        """The adapter of each token of the step that comes."""
        places: dict[str, list[int]] = {}
        for place, name in enumerate(adapters):
            if name is not None:
                places.setdefault(name, []).append(place)
        self._layout = [(name, send(torch.tensor(found), device)) for name, found in places.items()]

    def wrap(self, layers: Sequence[nn.Module], linear: Linear) -> Linear:
        """What computes these layers together, with what the adapters add to it."""
        paths = [self._paths[id(layer)] for layer in layers]
        outputs = [_outputs(layer) for layer in layers]
        added = {
            name: _joined([table.get(path) for path in paths], outputs)
            for name, table in self._tables.items()
            if any(path in table for path in paths)
        }
        if not added:
            return linear

        def adapted(tokens: Tensor) -> Tensor:
            found = linear(tokens)
            for name, places in self._layout:
                if name in added:
                    part = added[name](tokens[places].float()) if len(places) else found[:0]
                    found.index_add_(0, places, part.to(found.dtype))
            return found

        return adapted


def _outputs(layer: nn.Module) -> int:
    weight = layer.get_parameter("weight")
    return weight.shape[1] if type(layer).__name__ == "Conv1D" else weight.shape[0]


def _joined(parts: Sequence[LowRank | None], outputs: Sequence[int]) -> LowRank:
    """Of layers that read the same tokens and write one after the other; None: where nothing is added."""
    there = [part for part in parts if part is not None]
    up = there[0].up.new_zeros(sum(outputs), sum(len(part.down) for part in there))
    row = column = 0
    for part, size in zip(parts, outputs, strict=True):
        if part is not None:
            up[row : row + size, column : column + len(part.down)] = part.up
            column += len(part.down)
        row += size
    return LowRank(torch.cat([part.down for part in there]), up)


def _read(folder: Path, layers: Mapping[str, nn.Module], part: tuple[int, int]) -> dict[str, LowRank]:
    """What an adapter adds, by the names of the network's layers."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        weights = load_file(folder / WEIGHTS)
        alpha, rank = float(config["lora_alpha"]), int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} cannot be read as a LoRA adapter: {error}. Expected {CONFIG} and {WEIGHTS}"
        ) from error
    for name, expected in PLAIN.items():
        if config.get(name, expected) not in (expected, None):
            raise ConfigError(f"{folder}: an adapter with {name} = {config[name]!r} cannot be served beside others")
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    paths = sorted({name[len(PREFIX) :].removesuffix(DOWN).removesuffix(UP) for name in weights})
    return {path: _low_rank(folder, path, weights, layers, scale, part) for path in paths}


def _low_rank(
    folder: Path,
    path: str,
    weights: Mapping[str, Tensor],
    layers: Mapping[str, nn.Module],
    scale: float,
    part: tuple[int, int],
) -> LowRank:
    down, up = weights.get(PREFIX + path + DOWN), weights.get(PREFIX + path + UP)
    layer = layers.get(path)
    if down is None or up is None or layer is None:
        raise ConfigError(f"{folder / WEIGHTS} does not fit this network, which has no linear layer '{path}'")
    down, up = share_of_change(path, down, up, *part)
    shape = layer.get_parameter("weight").shape
    wanted = tuple(shape) if type(layer).__name__ == "Conv1D" else (shape[1], shape[0])
    if (down.shape[1], up.shape[0]) != wanted:
        raise ConfigError(
            f"{folder / WEIGHTS} does not fit this network: '{path}' takes {wanted[0]} numbers and gives {wanted[1]}, "
            f"the adapter's {down.shape[1]} and {up.shape[0]}"
        )
    place = layer.get_parameter("weight").device
    return LowRank(down.float().to(place), (up.float() * scale).to(place))
