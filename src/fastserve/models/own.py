"""A user's own torch module in the place of a network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, create_model
from torch import Tensor, nn

from fastserve.config import Section
from fastserve.errors import ConfigError
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor
from fastserve.types import Recipe, TextPreferences

_VOCABULARY, _OUTPUTS = ("vocabulary_size", "vocab_size"), ("num_labels", "num_outputs")


class OwnModule:
    """`module:Class` as a `NetworkKind`.

    The constructor is given `vocabulary_size` and `num_labels` (or `num_outputs`) where its signature has them; its
    other arguments are the options. forward(ids) or forward(ids, mask) gets int64 (B, T), padded with 0, and bool
    (B, T), and returns logits (B, num_labels).
    """

    encodings: tuple[str, ...] = ("tokens",)
    preferences = TextPreferences()

    def __init__(self, name: str, module: Any) -> None:
        if not (isinstance(module, type) and issubclass(module, nn.Module)):
            raise ConfigError(
                f"network '{name}' is {module!r}: expected a class derived from torch.nn.Module, or one that follows "
                f"fastserve.models.NetworkKind"
            )
        self.name, self.module = name, module

    @property
    def Options(self) -> type[Section]:
        fields: dict[str, Any] = {
            parameter.name: (_annotation(parameter), ... if parameter.default is parameter.empty else parameter.default)
            for parameter in self._arguments()
            if parameter.name not in _VOCABULARY + _OUTPUTS
        }
        return create_model(f"{self.module.__name__}Options", __base__=_OwnOptions, **fields)

    def _arguments(self) -> list[inspect.Parameter]:
        try:
            found = inspect.signature(self.module, eval_str=True).parameters.values()
        except NameError:  # an annotation that is imported for type checkers only
            found = inspect.signature(self.module).parameters.values()
        return [
            parameter for parameter in found if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]

    def recipe(self, rows: int, outputs: int) -> Recipe:
        return Recipe(epochs=3, batch=64, learning_rate=1e-3)

    def __call__(self, options: Section, shape: NetworkShape) -> nn.Module:
        given = {**dict.fromkeys(_VOCABULARY, shape.vocabulary["tokens"]), **dict.fromkeys(_OUTPUTS, shape.outputs)}
        sizes = {parameter.name: given[parameter.name] for parameter in self._arguments() if parameter.name in given}
        values = {name: getattr(options, name) for name in type(options).model_fields}
        try:
            module = self.module(**sizes, **values)
        except Exception as error:
            raise ConfigError(
                f"network '{self.name}' cannot be built with {sizes | values}: {type(error).__name__}: {error}"
            ) from error
        return OwnNetwork(self.name, module, shape.outputs)


class OwnNetwork(nn.Module):
    """A user's module behind the seam: pads the tokens for it and checks what it returns."""

    encodings = OwnModule.encodings

    def __init__(self, name: str, module: nn.Module, outputs: int) -> None:
        super().__init__()
        self.name, self.outputs = name, outputs
        self.module = module
        self.takes_mask = _takes_mask(name, module)

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        ids, mask = inputs["tokens"].padded()
        logits = self.module(ids, mask) if self.takes_mask else self.module(ids)
        return self._checked(logits, tuple(ids.shape))

    def _checked(self, logits: Any, shape: tuple[int, ...]) -> Tensor:
        expected = (shape[0], self.outputs)
        if isinstance(logits, Tensor) and tuple(logits.shape) == expected and logits.is_floating_point():
            return logits
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"network '{self.name}': forward(ids {shape}) returned {found}; expected logits, a float tensor of shape "
            f"{expected}: one row a text, one column a label"
        )


class _OwnOptions(Section):
    model_config = ConfigDict(arbitrary_types_allowed=True)


def _annotation(parameter: inspect.Parameter) -> Any:
    known = (int, float, bool, str)
    return parameter.annotation if parameter.annotation in known else Any


def _takes_mask(name: str, module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    if not positional or len(needed) > 2:
        raise ConfigError(
            f"network '{name}': forward takes ({', '.join(p.name for p in positional)}); expected forward(ids) or "
            f"forward(ids, mask)"
        )
    return len(positional) > 1
