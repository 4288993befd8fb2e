"""Guesses at what follows, from what stands in the text already (Saxena 2023, prompt look-up decoding). No torch.

A guess is read together with the last token, and kept as far as the network would have chosen it, so that the text is
the same and only comes sooner.
"""

from __future__ import annotations

from collections.abc import Sequence

SIZES = (4, 3)
"""Tokens that must have stood before as they stand at the end, for what followed them then to be guessed: the longest
first."""
HOPE = 0.5
"""Share of guesses that is taken to be right before any was made."""
MEMORY = 0.8
"""How much of the share so far stays, for each guess that is judged."""
RECOVERY = 0.002
"""What the share gains for each token that is not guessed at, so that it is tried again."""


class Lookup:
    """Of one text, by its tokens so far."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """The last few tokens, but for the text's end, to where that which followed them begins."""
        self.share = HOPE
        """Of its guesses that were right, of late."""
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        for token in ids:
            place = len(self._ids)
            for size in SIZES:
                if place >= size:
                    self._after[tuple(self._ids[place - size :])] = place
            self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """So many tokens, going round in the circle that has begun; none where the end of the text is new."""
        for size in SIZES:
            found = self._after.get(tuple(self._ids[-size:])) if len(self._ids) >= size else None
            if found is not None:
                circle = self._ids[found : found + most]
                return (circle * -(-most // len(circle)))[:most] if most > 0 else []
        return []

    def judge(self, guessed: int, right: int) -> None:
        """Of the tokens that were guessed for a step, so many were right; none guessed lets it be tried again."""
        if guessed:
            self.share = MEMORY * self.share + (1 - MEMORY) * right / guessed
        else:
            self.share = min(self.share + RECOVERY, HOPE)
