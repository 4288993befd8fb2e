"""Stop strings in a text that comes in pieces. No torch."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through until a stop string is complete, however the pieces cut it.

    What could become a stop string is held back. Of several the one that is complete first ends the text, and of those
    complete at the same place the longest; the text ends before it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.found: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """What may be shown now that `text` came; nothing after a stop string was found."""
        if self.found is not None:
            return ""
        self._held += text
        complete = [(place + len(stop), place, stop) for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if complete:
            _, place, self.found = min(complete)
            shown, self._held = self._held[:place], ""
            return shown
        kept = max((_overlap(self._held, stop) for stop in self.stops), default=0)
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
