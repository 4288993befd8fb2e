"""What strategies share that average gradients in every step: the weight of a worker's loss, and tables by rows."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fastserve.distributed.rows import average_rows
from fastserve.distributed.strategy import Alone
from fastserve.distributed.world import Part


class Averaging(Alone):
    """Gradients are averaged over the workers."""

    def weight(self, part: Part) -> float:
        """Each worker's mean counts by what counts in its rows."""
        return part.share * self.world.size

    def reduce(self, tables: Iterable[nn.Parameter], normalized: bool = False) -> None:
        for table in tables:
            average_rows(table, self.world)
