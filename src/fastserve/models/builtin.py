"""What the built-in networks read, told without importing torch: texts are prepared while it is being imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastserve.types import TextPreferences


@dataclass(frozen=True, slots=True)
class Reads:
    """encodings: which forward() reads. preferences: what `auto` means in the text section."""

    encodings: tuple[str, ...]
    preferences: TextPreferences


BUILTIN: Mapping[str, Reads] = {
    "linear": Reads(("ngrams",), TextPreferences()),
    "wide-deep": Reads(("ngrams", "tokens"), TextPreferences(max_length=200)),
    "bag": Reads(("ngrams",), TextPreferences(han_characters=(1, 2))),
    "mlp": Reads(("tokens",), TextPreferences()),
    "textcnn": Reads(("tokens",), TextPreferences(vocabulary_size=50_000)),
    "lstm": Reads(("tokens",), TextPreferences(vocabulary_size=50_000, max_length=256)),
    "transformer": Reads(("tokens",), TextPreferences(segment="subword", vocabulary_size=16_000, max_length=256)),
}
"""The networks' classes take what they say of themselves from here; a network from elsewhere is imported and asked."""
