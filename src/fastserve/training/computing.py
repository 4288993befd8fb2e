"""What a worker computes: the gradients of a step, and what an evaluation keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastserve.distributed.strategy import Strategy
from fastserve.distributed.world import Part, World
from fastserve.errors import TrainingError
from fastserve.log import warn
from fastserve.models.ragged import RaggedTensor
from fastserve.training.objective import Objective
from fastserve.training.parts import Piece
from fastserve.types import Batch, FloatArray, LongArray

Inputs = dict[str, RaggedTensor]
COMPILER = ("torch._dynamo", "torch._inductor")


class Computing:
    """The network and its loss on one device.

    placed: what the strategy made of `objective`, which is called for the loss. precision: of matrix products.
    compiled: whether torch.compile shall make both faster; where it cannot, they are computed as they are.
    """

    def __init__(
        self,
        objective: Objective,
        placed: nn.Module,
        strategy: Strategy,
        world: World,
        device: torch.device,
        precision: torch.dtype,
        *,
        compiled: bool = False,
    ) -> None:
        self.objective, self.placed = objective, placed
        self.strategy, self.world = strategy, world
        self.device, self.precision = device, precision
        self.compiled = compiled

    def begin(self) -> None:
        """From now on the network is compiled, if it shall be; nothing that only looks at it comes after."""
        if self.compiled:
            self.objective.compile(dynamic=True)

    def gradients(self, batch: Batch, pieces: Sequence[Piece]) -> float:
        """Add the gradient of the batch to what there is. Returns its mean loss.

        TrainingError where a GPU's memory does not suffice.
        """
        self.objective.train()
        losses = []
        try:
            for number, piece in enumerate(pieces, start=1):
                with nullcontext() if number == len(pieces) else self.strategy.holding():
                    losses.append(self._piece(piece.of(batch), piece.part))
            with self.world.doing("backward"):
                return float(torch.stack(losses).sum().item())
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of {self.device} does not suffice for {len(pieces[0].part.rows)} rows at once: set a "
                f"smaller train.micro_batch, or train.checkpoint_activations=true ({str(error).splitlines()[0]})"
            ) from error

    def _piece(self, batch: Batch, part: Part) -> Tensor:
        inputs, targets = self.to_device(batch)
        forward = self.world.doing("forward") if self.strategy.gathers else self.world.pulse.during("forward")
        with forward, self.autocast():
            loss = self._called(self.placed, inputs, targets, self.strategy.rows(part))
        with self.world.doing("backward"):
            (loss * self.strategy.weight(part)).backward()  # type: ignore[no-untyped-call]
        return loss.detach() * part.within

    def _called(self, module: nn.Module, *inputs: Any) -> Tensor:
        """The module's result: where the compiler fails, as if there were none."""
        try:
            found: Tensor = module(*inputs)
        except Exception as error:
            if not self.compiled or not type(error).__module__.startswith(COMPILER):
                raise
            warn(f"torch.compile cannot compile this network, which is computed as it is: {_first_line(error)}")
            self.compiled = False
            self.objective._compiled_call_impl = None
            found = module(*inputs)
        return found

    def scores(self, batch: Batch) -> FloatArray:
        """What the task keeps of each row, (B, any)."""
        with self.autocast():
            found: FloatArray = self._called(self.objective, self.to_device(batch)[0]).float().cpu().numpy()
        return found

    def all_scores(
        self, data: Any, batches: list[LongArray], *, exact: bool = False
    ) -> tuple[FloatArray, npt.NDArray[Any]]:
        """Scores (N, any) and targets of all rows in `batches`, in the order of the row numbers.

        data: `training.loop.Rows`. Workers take turns with the batches and all get the whole. exact: products of
        float32, whatever steps are computed in.
        """
        self.objective.eval()
        found = []
        no_gradients = torch.inference_mode if self.world.alone else torch.no_grad  # weights in shards want the second
        with no_gradients(), self.in_float32() if exact else nullcontext():
            for rows, counts in self.world.turns(batches):
                self.world.pulse.turns += 1
                batch = data.batch(rows)
                kept = slice(None) if counts else slice(0)
                found.append((self.scores(batch)[kept], batch.targets[kept], rows[kept]))
        scores, targets, order = (self.world.gather(np.concatenate(column)) for column in zip(*found, strict=True))
        back = np.argsort(order, kind="stable")
        return scores[back], targets[back]

    def to_device(self, batch: Batch) -> tuple[Inputs, Tensor]:
        inputs = {name: RaggedTensor.from_ragged(ragged).to(self.device) for name, ragged in batch.inputs.items()}
        return inputs, torch.from_numpy(batch.targets).to(self.device)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Meanwhile products are as exact as whoever loads the model computes them."""
        precision, self.precision = self.precision, torch.float32
        try:
            yield
        finally:
            self.precision = precision

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
