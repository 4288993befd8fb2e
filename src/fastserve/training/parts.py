"""How a worker computes its part of a step in pieces, each of which fits its memory. No torch.

All workers compute the same number of pieces, since some strategies let them meet in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from fastserve.distributed.world import Part, World
from fastserve.types import Batch, FloatArray, LongArray


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` to `stop` (not included) of a worker's batch, and how they count."""

    start: int
    stop: int
    part: Part

    def of(self, batch: Batch) -> Batch:
        """The rows, whose values are not copied."""
        if self.start == 0 and self.stop == len(batch):
            return batch
        inputs = {name: ragged.between(self.start, self.stop) for name, ragged in batch.inputs.items()}
        return Batch(batch.rows[self.start : self.stop], inputs, batch.targets[self.start : self.stop])


def whole(part: Part) -> list[Piece]:
    """A part in one piece."""
    return [Piece(0, len(part.rows), part)]


def pieces(part: Part, sizes: LongArray, counts: FloatArray | None, most: int, world: World) -> list[Piece]:
    """The pieces of `part`, this worker's part of a step.

    sizes: of all rows of the step, what each takes of `most`, which a piece has at most unless one row is larger.
    counts: of all rows of the step, how much each counts in the loss; None for rows that count the same.
    """
    own = sizes[world.rank :: world.size] if len(sizes) > world.rank else sizes[:1]
    number = max(len(boundaries(sizes[rank :: world.size], most)) - 1 for rank in range(world.size))
    found = evened(boundaries(own, most), number)
    mine = np.ones(len(own)) if counts is None else counts[world.rank :: world.size].astype(np.float64)
    total = float(mine.sum()) if part.counted else 0.0
    filling = replace(part, rows=part.rows[:1], share=0.0, within=0.0, own=len(part.rows))
    cut = [_piece(part, start, stop, float(mine[start:stop].sum()) / total if total else 0.0) for start, stop in found]
    return [Piece(0, 1, filling)] * (number - len(cut)) + cut


def _piece(part: Part, start: int, stop: int, within: float) -> Piece:
    rows = part.rows[start:stop]
    return Piece(start, stop, replace(part, rows=rows, share=part.share * within, within=within, own=len(part.rows)))


def boundaries(sizes: LongArray, most: int) -> list[int]:
    """Where rows of these sizes are cut, from 0 to their number, so that each piece takes at most `most`."""
    found, filled = [0], 0
    for place, size in enumerate(sizes.tolist()):
        if place > found[-1] and filled + size > most:
            found.append(place)
            filled = 0
        filled += size
    return [*found, len(sizes)] if len(sizes) else found


def evened(bounds: Sequence[int], number: int) -> list[tuple[int, int]]:
    """Pieces between the bounds, of which the widest are halved until there are `number`, as far as there are rows."""
    found = list(bounds)
    while len(found) - 1 < number:
        widths = np.diff(found)
        widest = int(widths.argmax())
        if widths[widest] < 2:
            break
        found.insert(widest + 1, (found[widest] + found[widest + 1]) // 2)
    return list(pairwise(found))
