"""How many bytes this worker sends to others, by what they are for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

OF_STEPS = ("gradients", "weights", "rows")


@dataclass(slots=True)
class Traffic:
    """Bytes of payload that one of `size` workers sends, computed from what is exchanged and not measured.

    Counted as rings pass things on (Thakur et al. 2005, the bandwidth-optimal algorithms), which gloo and nccl use.
    gloo: whether it is what exchanges; else it is nccl.
    """

    size: int
    gloo: bool = True
    bytes: Counter[str] = field(default_factory=Counter)
    """By kind: `gradients`, `weights`, `rows` (of sparse gradients), `start`, `evaluation`, `results`."""

    def reduced(self, kind: str, amount: float) -> None:
        """An all-reduce of so many bytes: a reduce-scatter and an all-gather of the parts."""
        self.bytes[kind] += round(2 * amount * (self.size - 1) / self.size)

    def scattered(self, kind: str, amount: float) -> None:
        """A reduce-scatter of so many bytes. gloo sums the whole for everybody, and drops what is another's."""
        rounds = 2 if self.gloo else 1
        self.bytes[kind] += round(rounds * amount * (self.size - 1) / self.size)

    def gathered(self, kind: str, amount: float) -> None:
        """An all-gather in which every worker has so many bytes."""
        self.bytes[kind] += round(amount * (self.size - 1))

    def told(self, kind: str, amount: float) -> None:
        """A broadcast of so many bytes: every worker but the last passes them on."""
        self.bytes[kind] += round(amount * (self.size - 1) / self.size)

    @property
    def total(self) -> int:
        return self.bytes.total()

    @property
    def of_steps(self) -> int:
        """What training itself sent."""
        return sum(self.bytes[kind] for kind in OF_STEPS)
