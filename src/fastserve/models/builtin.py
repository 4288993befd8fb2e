"""What the built-in networks read, told without importing torch: texts are prepared while it is being imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastserve.types import TextPreferences


@dataclass(frozen=True, slots=True)
class Reads:
    """encodings: which forward() reads. preferences: what `auto` means in the text section. causal: it writes text."""

    encodings: tuple[str, ...]
    preferences: TextPreferences
    causal: bool = False


def _decoder(vocabulary_size: int, context: int) -> Reads:
    return Reads(("tokens",), TextPreferences("subword", vocabulary_size, max_length=context), causal=True)


BUILTIN: Mapping[str, Reads] = {
    "linear": Reads(("ngrams",), TextPreferences()),
    "wide-deep": Reads(("ngrams", "tokens"), TextPreferences(max_length=200)),
    "bag": Reads(("ngrams",), TextPreferences(han_characters=(1, 2))),
    "mlp": Reads(("tokens",), TextPreferences()),
    "textcnn": Reads(("tokens",), TextPreferences(vocabulary_size=50_000)),
    "lstm": Reads(("tokens",), TextPreferences(vocabulary_size=50_000, max_length=256)),
    "transformer": Reads(("tokens",), TextPreferences(segment="subword", vocabulary_size=16_000, max_length=256)),
    "decoder-15m": _decoder(8_192, 512),
    "decoder-125m": _decoder(32_768, 2_048),
    "decoder-1b": _decoder(65_536, 2_048),
}
"""The networks' classes take what they say of themselves from here; a network from elsewhere is imported and asked."""
