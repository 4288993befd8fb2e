"""The seam between causal language models and what trains, scores or decodes with them.

A causal network knows no rows, no padding and no cache: it is given the tokens of many rows end to end and an
`Attention` that knows which of them see each other. Training hands it rows that are packed, decoding rows that grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    def longest(self) -> int:
        """Most tokens of a row."""
        ...

    @property
    def layers(self) -> int:
        """How many layers ask for attention, from 0 on."""
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
