"""`ddp`: every worker has the whole network, and gradients are averaged in every step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastserve.config import Positive, Section
from fastserve.distributed.averaging import Averaging
from fastserve.distributed.pulse import BACKWARD
from fastserve.distributed.strategy import Named, start_alike
from fastserve.distributed.world import World


class DdpOptions(Section):
    """`distributed.options` of ddp."""

    compression: Literal["none", "bf16", "powersgd"] = Field(
        "none", description="how gradients travel: as they are, in bfloat16, or as products of narrow matrices"
    )
    powersgd_rank: Positive = Field(4, description="how narrow: columns of the matrices of powersgd")
    powersgd_start: Positive = Field(100, description="steps without compression before powersgd begins")
    bucket_megabytes: Positive = Field(25, description="gradients that travel together while the rest is computed")
    varies: bool = Field(
        False, description="whether a network of your own uses other parameters in other steps; costs a little time"
    )


class Ddp(Averaging):
    """Gradients are averaged while the backward pass goes on (torch's DistributedDataParallel).

    The result of a step is that of one worker with all rows, to rounding.
    """

    Options: ClassVar[type[Section]] = DdpOptions
    options: DdpOptions

    def __init__(self, options: DdpOptions, world: World) -> None:
        super().__init__(options, world)
        self.tells_apart = world.device.type == "cpu"  # a GPU computes on after the hooks are called
        self._averaged: list[nn.Parameter] = []
        self._computed = 0.0
        """Seconds in backward passes when the last gradient was there: from then on the step's only waits."""
        self._waited = 0.0
        """Of those, what the steps before have waited."""
        self._steps = 0
        self._placed: DistributedDataParallel | None = None
        self._learned = False

    def place(self, module: nn.Module, tables: Named) -> nn.Module:
        start_alike((*module.parameters(), *module.buffers()), self.world)
        left = [p for name, p in module.named_parameters() if p.requires_grad and name not in tables]
        self._averaged = left
        for parameter in left:
            parameter.register_post_accumulate_grad_hook(self._note)  # type: ignore[no-untyped-call]
        if not left:
            return module
        ignored = [*tables, *(name for name, _ in module.named_buffers())]
        wrapper: Any = DistributedDataParallel
        wrapper._set_params_and_buffers_to_ignore_for_model(module, ignored)
        placed = DistributedDataParallel(
            module,
            gradient_as_bucket_view=True,
            static_graph=not self.options.varies,
            find_unused_parameters=self.options.varies,
            bucket_cap_mb=self.options.bucket_megabytes,
        )
        self._compress(placed)
        self._placed = placed
        return placed

    def holding(self) -> AbstractContextManager[None]:
        """Gradients stay on the worker; but not in the first pass of all, from which torch learns the graph."""
        learned, self._learned = self._learned or self._steps > 0, True
        return self._placed.no_sync() if learned and self._placed is not None else nullcontext()

    def _compress(self, placed: DistributedDataParallel) -> None:
        if self.options.compression == "bf16":
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            placed.register_comm_hook(None, bf16_compress_hook)
        elif self.options.compression == "powersgd":
            from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

            state: Any = powerSGD_hook.PowerSGDState(
                None,
                matrix_approximation_rank=self.options.powersgd_rank,
                start_powerSGD_iter=max(2, self.options.powersgd_start),
            )
            placed.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    def _note(self, parameter: Tensor) -> None:
        self._computed = self.world.pulse.lasted(BACKWARD)

    def after_step(self) -> None:
        pulse = self.world.pulse
        pulse.reckon(BACKWARD, "backward", max(0.0, self._computed - self._waited))
        self._waited = pulse.seconds[BACKWARD]
        self._steps += 1
        self.world.traffic.reduced("gradients", sum(self._travels(parameter) for parameter in self._averaged))

    def _travels(self, parameter: nn.Parameter) -> int:
        """Bytes of a gradient as it is compressed."""
        if self.options.compression == "bf16":
            return 2 * parameter.numel()
        if self.options.compression == "powersgd" and self._steps > self.options.powersgd_start and parameter.dim() > 1:
            narrow = self.options.powersgd_rank * (len(parameter) + parameter[0].numel())
            return 4 * narrow if 2 * narrow < parameter.numel() else parameter.nbytes
        return parameter.nbytes
