"""`diloco`: each worker trains alone for many steps, then all move by what they found: for slow links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from fastserve.config import Fraction, Positive, Section
from fastserve.distributed.narrow import mean_in_bytes
from fastserve.distributed.strategy import Alone, Named, start_alike
from fastserve.distributed.touches import Touches
from fastserve.distributed.world import Part, World


class DilocoOptions(Section):
    """`distributed.options` of diloco.

    The paper's outer step (rate 0.7, momentum 0.9) is for hundreds of exchanges. After the nine of a small run its
    momentum still carries the weights past where the workers found them good: 24 % more loss, where this has 1 %.
    Movements that travel as bytes can be exchanged twice as often as those in bfloat16: of a run of 243 steps the loss
    was 4.5 % above that of ddp with an exchange after every 50 steps, and no more than that of ddp after every 25.
    """

    inner_steps: Positive = Field(25, description="steps that a worker takes alone between two exchanges")
    outer_rate: Annotated[float, Field(gt=0)] = Field(
        1.0, description="share of the workers' mean movement that the common weights follow"
    )
    outer_momentum: Fraction = Field(0.5, description="of the common weights' movement (Nesterov)")
    compression: Literal["none", "bf16", "int8"] = Field(
        "int8", description="how a movement travels; int8: as bytes, with a scale for every 256 numbers"
    )


class Diloco(Alone):
    """Douillard et al. 2023, arXiv 2311.08105: an outer Nesterov step along the workers' mean movement.

    Of row-sparse tables only the rows that any worker moved travel; the outer step is that of the whole table. Where
    the optimizer makes full steps along any gradient, rows that few workers touch move as often as with averaged
    gradients (`Touches`). The optimizers' states stay with the workers. One worker with all rows finds other weights;
    they should be as good.
    """

    Options: ClassVar[type[Section]] = DilocoOptions
    options: DilocoOptions

    def __init__(self, options: DilocoOptions, world: World) -> None:
        super().__init__(options, world)
        self._weights: dict[str, nn.Parameter] = {}
        self._tables: dict[nn.Parameter, str] = {}
        self._touches: dict[str, Touches] = {}
        """Of tables whose optimizer gives each touch a full step; none while at rest."""
        self._common: dict[str, Tensor] = {}
        """What all workers had after the last exchange."""
        self._momentum: dict[str, Tensor] = {}
        self._steps_alone = 0

    def place(self, module: nn.Module, tables: Named) -> nn.Module:
        start_alike(chain(module.parameters(), module.buffers()), self.world)
        self._weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._tables = {table: name for name, table in tables.items()}
        self.restore({})
        return module

    def weight(self, part: Part) -> float:
        """A worker without rows of its own stands still."""
        return part.within if part.counted else 0.0

    def rows(self, part: Part) -> int:
        """The step is the worker's own."""
        return part.own or len(part.rows)

    def reduce(self, tables: Iterable[nn.Parameter], normalized: bool = False) -> None:
        """Every worker steps by gradients of its own, and notes which rows."""
        if normalized:
            for table in tables:
                self._touches.setdefault(self._tables[table], Touches(table)).note()

    def after_step(self) -> None:
        super().after_step()
        self._steps_alone += 1
        if self._steps_alone >= self.options.inner_steps:
            self.settle()

    def settle(self) -> None:
        if self._steps_alone:
            with self.world.doing("average"):
                self._exchange()
            self._touches = {}
            self._steps_alone = 0

    @property
    def at_rest(self) -> bool:
        return self._steps_alone == 0

    @property
    def shares_optimizer(self) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        """At rest the common weights are the network's."""
        return {"momentum": self._momentum}

    def restore(self, state: Mapping[str, Any]) -> None:
        found = state.get("momentum", {})
        self._common = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._momentum = {name: found.get(name, torch.zeros_like(w)).to(w) for name, w in self._common.items()}
        self._touches = {}
        self._steps_alone = 0

    @torch.no_grad()
    def _exchange(self) -> None:
        tables = self._tables.values()
        rows = {name: self._moved_rows(name) for name in self._weights if name in tables}
        moved = {name: self._common[name] - weight for name, weight in self._weights.items()}  # as a gradient points
        self._average([moved[name] for name in moved if name not in rows])
        for name, places in rows.items():
            moved[name].index_copy_(0, places, self._movement(name, moved[name].index_select(0, places), places))
        for name, direction in moved.items():
            self._outer_step(name, direction)

    def _moved_rows(self, name: str) -> Tensor:
        """int64 (M,): rows of a table that any worker has moved since the last exchange."""
        moved = (self._weights[name] != self._common[name]).flatten(1).any(1).to(torch.uint8)
        dist.all_reduce(moved, dist.ReduceOp.MAX)
        self.world.traffic.reduced("rows", moved.nbytes)
        return moved.nonzero().flatten()

    def _movement(self, name: str, values: Tensor, places: Tensor) -> Tensor:
        """What rows `places` (M,) of a table move by, of what this worker's have moved by: values (M, any)."""
        touches = self._touches.get(name)
        if touches is None:
            self._average([values])
            return values
        columns = touches.columns(places).to(values)
        columns = self._mean(columns.flatten(), in_bytes=False).view_as(columns)  # whose shares may be small
        self._average([values])
        return values * touches.as_often(columns, self.world.size).view(-1, *[1] * (values.dim() - 1))

    def _average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over the workers, in one exchange."""
        if not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        mean = self._mean(flat, in_bytes=self.options.compression == "int8")
        for tensor, part in zip(tensors, torch.split(mean, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def _mean(self, values: Tensor, *, in_bytes: bool) -> Tensor:
        """The mean of values (N,) over the workers."""
        if in_bytes:
            return mean_in_bytes(values.float(), self.world).to(values.dtype)
        travelling = values / self.world.size
        travelling = travelling if self.options.compression == "none" else travelling.bfloat16()
        dist.all_reduce(travelling)
        self.world.traffic.reduced("weights", travelling.nbytes)
        return travelling.to(values.dtype)

    def _outer_step(self, name: str, direction: Tensor) -> None:
        """Nesterov's step as `torch.optim.SGD` takes it."""
        momentum = self._momentum[name].mul_(self.options.outer_momentum).add_(direction)
        step = direction.add_(momentum, alpha=self.options.outer_momentum)
        common = self._common[name].sub_(step, alpha=self.options.outer_rate)
        self._weights[name].copy_(common)
