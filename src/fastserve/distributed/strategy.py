"""The seam between the training loop and the ways in which several workers share a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fastserve import config, plugins
from fastserve.config import DistributedConfig, Section
from fastserve.distributed.pulse import BACKWARD
from fastserve.distributed.world import ALONE, Part, World

Named = Mapping[str, nn.Parameter]


class Strategy(Protocol):
    """One way to share. The class is made with (options, world); then the loop calls, in every worker alike:

    `place` once; in a step `weight`, and after the backward pass `reduce` for the row-sparse tables that will be
    updated, then `after_step`; `settle` before an evaluation; `state` where `at_rest`.
    """

    Options: ClassVar[type[Section]]

    gathers: bool
    """Whether workers wait for each other in the forward pass as well, without saying when."""

    tells_apart: bool
    """Whether what a worker waits for others is told apart, after a step, from what it computes."""

    precision: torch.dtype | None
    """What products are computed in, where the strategy decides it."""

    starts_empty: bool
    """Whether `place` gives a module on the meta device its first values (`models.network.HasFirstValues`)."""

    def __init__(self, options: Any, world: World) -> None: ...

    def place(self, module: nn.Module, tables: Named) -> nn.Module:
        """What is called for the loss from now on: `module`, whose gradients are averaged or sharded as it may be.

        All workers have the first one's weights afterwards. tables: parameters of the module, by name, that have
        row-sparse gradients and are left to `reduce`. The module's other parameters may be replaced (by shards).
        """
        ...

    def weight(self, part: Part) -> float:
        """What the mean loss of a part is multiplied by; the gradients of a worker's parts are summed."""
        ...

    def rows(self, part: Part) -> int:
        """Rows of the step that the worker's gradient is part of (`Task.loss`)."""
        ...

    def holding(self) -> AbstractContextManager[None]:
        """While entered, both passes of a part of a step that is not the last: what can wait for that one does."""
        ...

    def reduce(self, tables: Iterable[nn.Parameter], normalized: bool = False) -> None:
        """Average the row-sparse gradients of `tables` over the workers, where the strategy has each step averaged.

        normalized: whether the step that follows moves the touched rows alone, and as far however large their gradients
        are (as Adam's does).
        """
        ...

    def after_step(self) -> None:
        """An optimizer step was made."""
        ...

    def settle(self) -> None:
        """Let all workers have the same weights."""
        ...

    @property
    def at_rest(self) -> bool:
        """Whether all workers have the same weights now, so that a checkpoint holds the run."""
        ...

    @property
    def shares_optimizer(self) -> bool:
        """Whether the optimizer's state is that of the run; else every worker has its own."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """A parameter or buffer that may be in shards, put together (on every worker)."""
        ...

    def state(self) -> dict[str, Any]:
        """What the strategy remembers between steps, alike on all workers."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave, or an empty one where another strategy saved."""
        ...


class Alone:
    """One worker: nothing to share. The base of the others, which say what they do differently."""

    Options: ClassVar[type[Section]] = Section
    gathers = False
    tells_apart = True
    precision: torch.dtype | None = None
    starts_empty = False

    def __init__(self, options: Any = None, world: World = ALONE) -> None:
        self.options, self.world = options, world

    def place(self, module: nn.Module, tables: Named) -> nn.Module:
        return module

    def weight(self, part: Part) -> float:
        return part.within

    def rows(self, part: Part) -> int:
        return part.whole

    def holding(self) -> AbstractContextManager[None]:
        return nullcontext()

    def reduce(self, tables: Iterable[nn.Parameter], normalized: bool = False) -> None:
        return

    def after_step(self) -> None:
        """Exchanges have names of their own: the rest of the backward pass was computing."""
        if self.tells_apart:
            self.world.pulse.reckon(BACKWARD, "backward", self.world.pulse.seconds[BACKWARD])

    def settle(self) -> None:
        return

    @property
    def at_rest(self) -> bool:
        return True

    @property
    def shares_optimizer(self) -> bool:
        return True

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        return


def start_alike(tensors: Iterable[Tensor], world: World) -> None:
    """Give `tensors` the values that they have in the first worker."""
    import torch.distributed as dist

    for tensor in tensors:
        dist.broadcast(tensor.detach(), 0)
        world.traffic.told("start", tensor.nbytes)


def pick(settings: DistributedConfig, world: World) -> Strategy:
    """The strategy that the configuration names; with one worker there is nothing to share."""
    if world.alone:
        return Alone()
    kind: type[Strategy] = plugins.STRATEGIES.load(settings.strategy)
    where = f"distributed.options of '{settings.strategy}'"
    return kind(config.check(kind.Options, settings.options, where), world)
