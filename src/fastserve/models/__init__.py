"""Networks: `nn.Module`s built from a configuration and nothing else. torch is imported when the first is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastserve.models.network import Network, NetworkKind, NetworkShape, build, find, reads, resolve

if TYPE_CHECKING:
    from fastserve.models.ragged import RaggedTensor

__all__ = ["Network", "NetworkKind", "NetworkShape", "RaggedTensor", "build", "find", "reads", "resolve"]


def __getattr__(name: str) -> Any:
    if name == "RaggedTensor":
        from fastserve.models.ragged import RaggedTensor

        return RaggedTensor
    raise AttributeError(f"module 'fastserve.models' has no attribute '{name}'")
