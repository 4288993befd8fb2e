"""A moving average of a network's weights, and the network for a while with it."""

from __future__ import annotations

from torch import Tensor, nn


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


class Average:
    """The exponential moving average of the weights that is evaluated and kept; none where `decay` is 0.

    steps: since the average took up the weights. Early ones count more than `decay` says, so that it soon forgets how
    the weights began.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.weights = copied(network) if decay else None
        self.steps = 0

    def update(self, step: int) -> None:
        """Take up the weights of this step."""
        if self.weights is None:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) ** self.steps
        self.steps = 0
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    def __enter__(self) -> None:
        """Until the exit the network has the averaged weights (or its own where none are kept)."""
        if self.weights is not None:
            self._own = copied(self.network)
            self.network.load_state_dict(self.weights)

    def __exit__(self, *_: object) -> None:
        if self.weights is not None:
            self.network.load_state_dict(self._own)
            del self._own
