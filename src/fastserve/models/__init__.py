"""Networks: `nn.Module`s built from a configuration and nothing else."""

from fastserve.models.network import Network, NetworkKind, NetworkShape, build, find, resolve
from fastserve.models.ragged import RaggedTensor

__all__ = ["Network", "NetworkKind", "NetworkShape", "RaggedTensor", "build", "find", "resolve"]
