"""One text of an order while an engine writes it. No torch."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastserve.generation.job import Job
from fastserve.generation.orders import Order
from fastserve.generation.speculation import Lookup
from fastserve.generation.writing import Writing

if TYPE_CHECKING:
    from fastserve.generation.grammar import Follower


@dataclass(eq=False)
class Text:
    """copy: of `Sampling.n`; job: what the scheduler knows of it; blocks: hashes of its whole blocks."""

    order: Order
    copy: int
    job: Job
    writing: Writing
    blocks: Blocks
    follower: Follower | None = None
    """Of its grammar."""
    lookup: Lookup | None = None
    """What guesses are made from."""
    told: bool = False
    """Whether anything of it was given out."""
    cached: int = 0
    """Tokens of the prompt that were remembered when it was first placed."""
    guesses: Sequence[int] = field(default=())
    """What was guessed to follow, and is read with the last token in this step."""

    def ids(self, start: int, count: int) -> list[int]:
        """Tokens of prompt and text, by their places."""
        prompt, written = self.writing.row.prompt, self.writing.written
        begin, end = start - len(prompt), start + count - len(prompt)
        if begin >= 0:
            return written[begin:end]
        return [*prompt[start : start + count], *written[: max(end, 0)]]


class Blocks:
    """Hashes of the whole blocks of a text, each over all that is before it.

    salt: what two texts must have in common to share anything: who asks, and the adapter.
    """

    def __init__(self, size: int, salt: str) -> None:
        self.size = size
        self.hashes: list[bytes] = []
        self._last = hashlib.blake2b(salt.encode("utf-8"), digest_size=16).digest()
        self._rest: list[int] = []

    def extend(self, ids: Sequence[int]) -> None:
        """The text goes on by these tokens."""
        self._rest.extend(ids)
        while len(self._rest) >= self.size:
            block, self._rest = self._rest[: self.size], self._rest[self.size :]
            content = self._last + struct.pack(f"<{self.size}q", *block)
            self._last = hashlib.blake2b(content, digest_size=16).digest()
            self.hashes.append(self._last)
