"""How long texts become, learned from those that have ended. No torch."""

from __future__ import annotations

_PER_DOUBLING = 4
_LEVELS = 64
_PRIOR = 8.0
"""Finished texts that a group of prompts needs before it says as much as all texts together."""
_KEPT = 0.999
"""What a finished text counts for after another one has ended: the last thousand or so are remembered."""


def level(tokens: int) -> int:
    """Which of the classes of lengths, four for each doubling, `tokens` is in: 0 to 63."""
    if tokens < 1:
        return 0
    power = tokens.bit_length() - 1
    return min(power * _PER_DOUBLING + ((tokens * _PER_DOUBLING) >> power) - _PER_DOUBLING, _LEVELS - 1)


def bottom(number: int) -> int:
    """The smallest length in a class."""
    power, part = divmod(number, _PER_DOUBLING)
    return -(-((_PER_DOUBLING + part) << power) // _PER_DOUBLING)


class Ended:
    """How many texts ended in each class of lengths, and with how many tokens; the mean that is left in each class."""

    def __init__(self) -> None:
        self.count = [0.0] * _LEVELS
        self.tokens = [0.0] * _LEVELS
        self.weight = 1.0
        self.total = 0.0
        """Texts, in today's weight."""
        self.beyond: list[tuple[float, float]] = [(0.0, 0.0)] * (_LEVELS + 1)
        """For each class: texts that ended in it or a longer one, and their tokens."""
        self._news = 0

    def add(self, tokens: int) -> None:
        """A text ended with so many tokens. Old ones fade: what is new weighs more, rather than all else less."""
        self.weight /= _KEPT
        self.total = self.total * _KEPT + 1
        found = level(tokens)
        self.count[found] += self.weight
        self.tokens[found] += self.weight * tokens
        self._news += 1
        if self._news >= min(self.total / 16, 32):
            self._sum()

    def _sum(self) -> None:
        self._news = 0
        count, tokens = [each / self.weight for each in self.count], [each / self.weight for each in self.tokens]
        self.count, self.tokens, self.weight = count, tokens, 1.0
        texts = written = 0.0
        for place in range(_LEVELS - 1, -1, -1):
            texts, written = texts + count[place], written + tokens[place]
            self.beyond[place] = (texts, written)

    def left(self, written: int) -> tuple[float, float]:
        """Of the texts longer than `written`: how many (in weight), and what they wrote beyond that in all."""
        texts, tokens = self.beyond[level(written) + 1] if written else self.beyond[0]
        return texts, tokens - texts * written


class Lengths:
    """Learns from finished texts; before the first of them half of what may be written is expected.

    Prompts of similar length form a group (by doublings), since short questions have other answers than long ones.
    """

    def __init__(self) -> None:
        self._all = Ended()
        self._groups: dict[int, Ended] = {}

    def add(self, prompt_length: int, written: int) -> None:
        self._all.add(written)
        self._groups.setdefault(prompt_length.bit_length(), Ended()).add(written)

    def left(self, prompt_length: int, written: int, most: int) -> float:
        """Expected number of tokens after the first `written`, of a text that may have at most `most`."""
        texts, tokens = self._all.left(written)
        expected = (tokens + (most - written) / 2) / (texts + 1)
        group = self._groups.get(prompt_length.bit_length())
        if group is not None:
            texts, tokens = group.left(written)
            expected = (tokens + expected * _PRIOR) / (texts + _PRIOR)
        return min(max(expected, 1.0), most - written)


def steps_to_next(written: int) -> int:
    """Tokens until a text comes into the next class of lengths."""
    return bottom(level(written) + 1) - written
