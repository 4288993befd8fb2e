"""What is computed in a step: the loss of a network under a task, as one module that a strategy can place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor, nn

from fastserve.models.network import HasFirstValues
from fastserve.models.ragged import RaggedTensor
from fastserve.tasks.base import Task


class Objective(nn.Module):
    """The network and its loss.

    Strategies hook into the call of a module, and a network may have a loss of its own that does not call its forward:
    so the call that they see is this one.
    """

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network = network
        self.task = task

    def forward(
        self, inputs: Mapping[str, RaggedTensor], targets: Tensor | None = None, rows: int | None = None
    ) -> Tensor:
        """The mean loss of the batch (`Task.loss`), or without targets what an evaluation keeps (`Task.score`)."""
        if targets is None:
            return self.task.score(self.network, inputs)
        return self.task.loss(self.network, inputs, targets, rows)

    def first_values(self) -> Iterator[tuple[str, Tensor]]:
        """As `HasFirstValues`, of a network that has them."""
        for name, value in cast(HasFirstValues, self.network).first_values():
            yield f"network.{name}", value
