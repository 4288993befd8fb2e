"""Raw strings to numbers: cleaning, segmentation, vocabulary, n-grams, and the saved pipeline."""

from fastserve.text.language import Language, detect
from fastserve.text.pipeline import TextPipeline

__all__ = ["Language", "TextPipeline", "detect"]
