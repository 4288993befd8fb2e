"""Row-sparse gradients over several workers: only the touched rows travel."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastserve.distributed.world import World


def average_rows(table: nn.Parameter, world: World) -> None:
    """Replace the gradient of `table` (rows, width) by its mean over the workers, with distinct ascending rows.

    A worker whose gradient is None touched no row.
    """
    rows, values = _touched(table)
    counts = torch.zeros(world.size, dtype=torch.int64, device=table.device)
    counts[world.rank] = len(rows)
    dist.all_reduce(counts)
    sizes = counts.tolist()
    all_rows = gathered(rows, sizes, world)
    all_values = gathered(values, sizes, world) / world.size
    gradient = torch.sparse_coo_tensor(all_rows[None], all_values, table.shape, check_invariants=False)
    table.grad = gradient.coalesce()


def _touched(table: nn.Parameter) -> tuple[Tensor, Tensor]:
    gradient = table.grad
    if gradient is None:
        return torch.zeros(0, dtype=torch.int64, device=table.device), table.new_zeros(0, *table.shape[1:])
    if not gradient.is_sparse:
        return torch.arange(len(table), device=table.device), gradient
    return gradient._indices()[0], gradient._values()


def gathered(tensor: Tensor, sizes: list[int], world: World) -> Tensor:
    """Tensors (N_rank, ...) of all workers, one behind the other. sizes: N of each rank."""
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    world.traffic.gathered("rows", padded.nbytes)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
