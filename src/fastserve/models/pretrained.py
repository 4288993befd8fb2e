"""A local Hugging Face encoder folder with a classification layer on top. Nothing is downloaded and no code in the
folder is run: weights are read from safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fastserve.config import Fraction, Section
from fastserve.errors import ConfigError, MissingExtraError
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor
from fastserve.types import Recipe, TextPreferences

CONFIG = "config.json"


class PretrainedOptions(Section):
    """Options of a Hugging Face folder."""

    pooling: Literal["mean", "cls"] = Field(
        "mean", description="what stands for a text: the mean of its tokens or its first"
    )
    dropout: Fraction = Field(0.1, description="before the classification layer")


class PretrainedFolder:
    """A folder with config.json (and, to begin from its weights, model.safetensors) as a `NetworkKind`."""

    encodings: ClassVar[tuple[str, ...]] = ("tokens",)
    Options: ClassVar[type[Section]] = PretrainedOptions

    def __init__(self, folder: Path, *, weights: bool = True) -> None:
        self.folder, self.weights = folder, weights

    @property
    def preferences(self) -> TextPreferences:
        """The folder's own tokenizer, and texts as long as its positions reach (at most 512 tokens)."""
        tokenizer = self.folder / "tokenizer.json"
        if not tokenizer.is_file():
            raise ConfigError(
                f"{self.folder} has no tokenizer.json, without which its weights have no meaning. Write one with "
                f"transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        return TextPreferences("subword", tokenizer_file=str(tokenizer), max_length=min(512, self._positions()))

    def _positions(self) -> int:
        try:
            content = json.loads((self.folder / CONFIG).read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{self.folder / CONFIG} is not valid JSON: {error}") from None
        return longest_text(content)

    def recipe(self, rows: int, outputs: int) -> Recipe:
        return Recipe(epochs=3, batch=32, learning_rate=1e-4, warmup=0.1, bf16=True)

    def __call__(self, options: PretrainedOptions, shape: NetworkShape) -> nn.Module:
        return PretrainedEncoder(options, shape, self._encoder())

    def _encoder(self) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError(f"the Hugging Face folder {self.folder}", "pretrained") from error
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            if self.weights:
                return transformers.AutoModel.from_pretrained(
                    self.folder, use_safetensors=True, dtype=torch.float32, **safe
                )
            config = transformers.AutoConfig.from_pretrained(self.folder, **safe)
            automatic: Any = transformers.AutoModel
            return automatic.from_config(config, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{self.folder} cannot be loaded as a Hugging Face encoder: {error}. Expected config.json of a known "
                f"model type and model.safetensors"
            ) from error


class PretrainedEncoder(nn.Module):
    """Encoder, pooling, dropout, linear layer."""

    encodings = PretrainedFolder.encodings

    def __init__(self, options: PretrainedOptions, shape: NetworkShape, encoder: Any) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # made for another aim, and its parameters would have no gradient
        self.options, self.config = options, encoder.config
        self.longest = longest_text(self.config.to_dict())
        # named as transformers names it, so that AutoModel finds its weights in the saved file
        self.part = encoder.base_model_prefix or "model"
        self.add_module(self.part, encoder)
        self.classifier = nn.Linear(self.config.hidden_size, shape.outputs)

    def files(self) -> dict[str, str]:
        return {CONFIG: self.config.to_json_string()}

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        ids, mask = inputs["tokens"].padded(self.config.pad_token_id or 0)
        if ids.shape[1] > self.longest:
            raise ConfigError(
                f"a text has {ids.shape[1]} tokens, but this encoder takes {self.longest}: set text.max_length to at "
                f"most {self.longest}"
            )
        mask[:, 0] = True  # an empty text attends to one padding token instead of to nothing
        hidden = self.get_submodule(self.part)(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        pooled = nn.functional.dropout(self._pool(hidden, mask), self.options.dropout, self.training)
        logits: Tensor = self.classifier(pooled)
        return logits

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, T, H) to (B, H)"""
        if self.options.pooling == "cls":
            return hidden[:, 0]
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def longest_text(config: Mapping[str, Any]) -> int:
    """Most tokens of a text that the positions of a Hugging Face configuration reach."""
    positions = int(config.get("max_position_embeddings") or 512)
    # the RoBERTa family counts positions from behind the padding id
    counted_from = int(config.get("pad_token_id") or 0) + 1 if "roberta" in str(config.get("model_type")) else 0
    return positions - counted_from
