"""How often workers that train alone touched the rows of a table: what the mean of their movements lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Touches:
    """In how many of its steps this worker touched each row of a table.

    An optimizer such as Adam moves a row that a step touches by a full step, whoever's text touched it. Of n workers
    with averaged gradients, each would see every touch; alone, a worker sees its own, and the mean of the movements
    takes a row that one worker touched an n-th of the way. A row that all touch always is moved by all alike.
    """

    def __init__(self, table: nn.Parameter) -> None:
        self._table = table
        self._steps = 0
        self._touched = torch.zeros(len(table), dtype=torch.int32, device=table.device)

    def note(self) -> None:
        """A step is about to be made by the gradient that the table has now."""
        self._steps += 1
        gradient = self._table.grad
        if gradient is None:
            return
        if gradient.is_sparse:
            rows = gradient._indices()[0]
            self._touched[rows] = self._touched[rows] + 1  # once, also where a row is there twice
        else:
            self._touched += 1

    def columns(self, rows: Tensor) -> Tensor:
        """float32 (N, 2) of rows (N,), for `as_often` after their mean over the workers was taken.

        The share of steps that touched a row, and the logarithm of the share that did not.
        """
        touched = self._touched[rows] / self._steps
        return torch.stack([touched, torch.log1p(-touched)], 1)

    @staticmethod
    def as_often(means: Tensor, workers: int) -> Tensor:
        """(N,): the steps in which any of `workers` touches a row, beside those of a worker on average.

        1 where all touch it always, nearly `workers` where few do. means: of `columns`. Taken as if the workers' texts
        were independent of each other; 1 where a row moved and nobody touched it.
        """
        touched, untouched = means.unbind(1)
        any_touched = -torch.expm1(workers * untouched)
        return torch.where(touched > 0, any_touched / touched, 1.0)
