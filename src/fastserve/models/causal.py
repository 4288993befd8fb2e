"""The seam between causal language models and what trains, scores or decodes with them.

A causal network knows no rows, no padding and no cache: it is given the tokens of many rows end to end and an
`Attention` that knows which of them see each other. Training hands it rows that are packed, decoding rows that grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional

from fastserve.errors import DataError
from fastserve.models.ragged import RaggedTensor


class Attention(Protocol):
    """Who remembers, and who sees what."""

    @property
    def positions(self) -> Tensor:
        """int64 (N,): the place of each token in its own row, from 0."""
        ...

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None = None,
        cap: float | None = None,
    ) -> Tensor:
        """softmax(scale * query @ key) @ value of each token over itself and those before it in its row.

        query (N, H, D), key and value (N, K, D), H a multiple of K: head h reads the key of h // (H / K). window: a
        token sees only so many tokens, itself included. cap: scores s become cap * tanh(s / cap). Returns (N, H, D).
        """
        ...


@runtime_checkable
class CausalNetwork(Protocol):
    """A built causal network: besides `Network`, what a loss in pieces and decoding need."""

    @property
    def head(self) -> nn.Module:
        """hidden (n, dim) to logits (n, V). Its parameters are those that logits need."""
        ...

    @property
    def layers(self) -> int:
        """How many layers ask an `Attention`, by numbers from 0."""
        ...

    @property
    def longest(self) -> int:
        """Most tokens of a row."""
        ...

    def hidden(self, ids: Tensor, attention: Attention) -> Tensor:
        """ids int64 (N,) to (N, dim), after the last norm."""
        ...

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        """Logits (N, V) of the rows of the encoding "tokens"."""
        ...

    def files(self) -> dict[str, str]:
        """config.json and generation_config.json: beside the weights the folder loads with AutoModelForCausalLM."""
        ...


class TiedHead(nn.Module):
    """A head whose weights are those of an embedding.

    Made anew whenever it is asked for, and no part of the network: so each parameter has one name and one place.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    @property
    def weight(self) -> nn.Parameter:
        return self.embedding.get_parameter("weight")

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight)


def check_lengths(found: int, longest: int) -> None:
    """DataError where the longest row of a batch has more tokens than the network takes."""
    if found > longest:
        raise DataError(
            f"a row has {found} tokens, but this network takes at most {longest}: set model.options.context to as "
            f"many, or cut longer rows"
        )
