"""The runtime that every network has: the torch module itself."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import torch
from torch import nn

from fastserve import device, models
from fastserve.bundle.bundle import ADAPTER, Bundle
from fastserve.bundle.runtimes.padded import batches, padded_lengths
from fastserve.errors import BundleError
from fastserve.models import NetworkShape, RaggedTensor
from fastserve.types import Encoded, FloatArray, Ragged

TOKEN_BUDGET = 16_384
"""Most tokens in one forward pass, padding counted: some megabytes of activations a layer."""


class TorchRuntime:
    """Runs a module over batches of texts of similar length."""

    name: ClassVar[str] = "torch"

    def __init__(self, network: nn.Module, place: torch.device, token_budget: int = TOKEN_BUDGET) -> None:
        self.network = network
        self.device = place
        self.token_budget = token_budget

    @classmethod
    def load(cls, bundle: Bundle, threads: int | None = None, place: str = "auto") -> Self:
        """Build the network and give it the weights of `bundle`.

        threads: torch's threads in this whole process; None leaves them. place: a device name as torch knows it.
        BundleError where the weights are not those of the network.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        network = build_network(bundle)
        target = device.pick_device(place)
        return cls(network.to(target).eval().requires_grad_(False), target)

    def logits(self, encoded: Encoded) -> FloatArray:
        """float32 (N, outputs), in the order of the rows."""
        with torch.inference_mode():
            rows = len(next(iter(encoded.values())))
            return self._forward(encoded) if rows <= 1 else self._sorted(encoded)

    def _sorted(self, encoded: Encoded) -> FloatArray:
        lengths = padded_lengths(encoded)
        parts, order = [], []
        for rows in batches(lengths, self.token_budget):
            parts.append(self._forward({name: ragged.take(rows) for name, ragged in encoded.items()}))
            order.append(rows)
        result = np.empty((len(lengths), parts[0].shape[1]), np.float32)
        result[np.concatenate(order)] = np.concatenate(parts)
        return result

    def _forward(self, encoded: Encoded) -> FloatArray:
        inputs = {name: self._tensor(ragged) for name, ragged in encoded.items()}
        return np.asarray(self.network(inputs).float().cpu().numpy(), np.float32)

    def _tensor(self, ragged: Ragged) -> RaggedTensor:
        tensor = RaggedTensor.from_ragged(ragged)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)


def build_network(bundle: Bundle) -> nn.Module:
    """The module of `bundle` with its weights, on the processor, in training mode as torch makes it."""
    spec = bundle.manifest.network
    causal = bundle.manifest.task == "generation"
    network = models.build(spec.name, spec.options, NetworkShape(**spec.shape), saved_in=bundle.folder, causal=causal)
    weights = {name: torch.from_numpy(array) for name, array in bundle.weights().items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError(f"{bundle.folder}: the weights do not fit the network '{spec.name}': {error}") from error
    if (bundle.folder / ADAPTER).is_dir():
        from fastserve.models.lora import load_adapter

        load_adapter(network, bundle.folder / ADAPTER)
    return network
