"""A local Hugging Face folder of a causal language model (Llama, Qwen, Mistral, Gemma, GPT-2 and what is built alike).

`transformers` computes the layers and asks our `Attention` in place of its own, so that rows are packed without padding
and decoded by the same caches as any other network. Nothing is downloaded and no code in the folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fastserve.config import Auto, Positive, Section
from fastserve.errors import ConfigError, MissingExtraError
from fastserve.models.attention import PackedCausal
from fastserve.models.causal import Attention, TiedHead, check_lengths
from fastserve.models.network import NetworkShape
from fastserve.models.pretrained import CONFIG
from fastserve.models.ragged import RaggedTensor
from fastserve.types import Recipe, TextPreferences

OURS = "fastserve"
"""The name of our attention among those of `transformers`."""
SPIKE = 3.0
"""Times the usual loss: so much is no hard text."""
CONTEXT = 2_048
"""Tokens of a row, where positions reach farther and the user says nothing."""
DROPOUTS = ("attention_dropout", "attn_pdrop")


class CausalFolderOptions(Section):
    """Options of a Hugging Face folder that writes text."""

    context: Positive | Auto = Field(
        "auto", description=f"most tokens of a row; auto: as far as its positions reach, at most {CONTEXT:,}"
    )


class CausalFolder:
    """A folder with config.json (and, to begin from its weights, safetensors) as a `NetworkKind`."""

    encodings: ClassVar[tuple[str, ...]] = ("tokens",)
    Options: ClassVar[type[Section]] = CausalFolderOptions

    def __init__(self, folder: Path, *, weights: bool = True) -> None:
        self.folder, self.weights = folder, weights

    @property
    def preferences(self) -> TextPreferences:
        """The folder's own tokenizer, and rows as long as its positions reach (at most `CONTEXT` tokens)."""
        tokenizer = self.folder / "tokenizer.json"
        if not tokenizer.is_file():
            raise ConfigError(
                f"{self.folder} has no tokenizer.json, without which its weights have no meaning. Write one with "
                f"transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        return TextPreferences(
            "subword", tokenizer_file=str(tokenizer), max_length=min(CONTEXT, positions_of(self._configuration()))
        )

    def _configuration(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.folder / CONFIG).read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{self.folder / CONFIG} is not valid JSON: {error}") from None
        return content

    def recipe(self, rows: int, outputs: int) -> Recipe:
        """For weights that know a language already (Touvron et al. 2023, arXiv 2307.09288, section 3.1)."""
        return Recipe(
            epochs=2,
            batch=16,
            learning_rate=2e-5,
            weight_decay=0.1,
            warmup=0.03,
            schedule="cosine",
            bf16=True,
            betas=(0.9, 0.95),
            spike=SPIKE,
        )

    def __call__(self, options: CausalFolderOptions, shape: NetworkShape) -> nn.Module:
        model = self._model()
        wanted = shape.vocabulary["tokens"]
        if wanted > model.config.vocab_size:  # of tokens that the tokenizer was given since
            model.resize_token_embeddings(wanted)
        return CausalFromFolder(options, model)

    def _model(self) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError(f"the Hugging Face folder {self.folder}", "pretrained") from error
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        automatic: Any = transformers.AutoModelForCausalLM
        try:
            if self.weights:
                model = automatic.from_pretrained(self.folder, use_safetensors=True, dtype=torch.float32, **safe)
            else:
                config = transformers.AutoConfig.from_pretrained(self.folder, **safe)
                model = automatic.from_config(config, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{self.folder} cannot be loaded as a Hugging Face causal language model: {error}. Expected "
                f"config.json of a known model type and model.safetensors"
            ) from error
        if self.weights:
            self._compare(model)
        return model

    def _compare(self, model: Any) -> None:
        """Refuse a model that does something to hidden vectors, positions or logits that is not known here."""
        tokens = RaggedTensor(torch.arange(1, 8) % model.config.vocab_size, torch.tensor([0, 4, 7]))
        model.eval()
        with torch.no_grad():
            rows = (tokens.values[:4], tokens.values[4:])
            theirs = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
            ours = CausalFromFolder(CausalFolderOptions(), model)({"tokens": tokens})
        if not torch.allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max()), rtol=1e-3):
            raise ConfigError(
                f"{self.folder}: a model of type '{model.config.model_type}' computes something that is not known "
                f"here: packed logits differ from its own by {float((ours - theirs).abs().max()):.3g}. Known: Llama, "
                f"Qwen, Mistral, Gemma, GPT-2 and what is built alike"
            )


class CausalFromFolder(nn.Module):
    """A causal network (`CausalNetwork`). model: of `transformers`, whose parts are taken under their own names."""

    encodings = CausalFolder.encodings

    def __init__(self, options: CausalFolderOptions, model: Any) -> None:
        super().__init__()
        self._checkpointed = False
        register_attention()
        self.config = model.config
        self.config.architectures = [type(model).__name__]
        for name in DROPOUTS:  # our attention has none, and none is said to be there
            if getattr(self.config, name, 0):
                setattr(self.config, name, 0.0)
        model.set_attn_implementation(OURS)
        self.layers = int(self.config.num_hidden_layers)
        reach = positions_of(self.config.to_dict())
        self.longest = min(CONTEXT, reach) if options.context == "auto" else options.context
        if self.longest > reach:
            raise ConfigError(f"model.options.context: {self.longest} tokens, but the positions reach to {reach}")
        self.part = model.base_model_prefix
        self.add_module(self.part, model.get_submodule(self.part))
        self.generation = _json_of(getattr(model, "generation_config", None))
        output = model.get_output_embeddings()
        self.tied = output.weight is model.get_input_embeddings().weight
        if not self.tied:
            self.lm_head = output

    @property
    def base(self) -> Any:
        return self.get_submodule(self.part)

    @property
    def head(self) -> nn.Module:
        linear = TiedHead(self.base.get_input_embeddings()) if self.tied else self.lm_head
        cap, scale = logits_change(self.config)
        return linear if cap is None and scale == 1 else ChangedHead(linear, scale, cap)

    @property
    def checkpoint_blocks(self) -> bool:
        """Whether the inputs of blocks alone are kept, and blocks computed again in the backward pass."""
        return self._checkpointed

    @checkpoint_blocks.setter
    def checkpoint_blocks(self, wanted: bool) -> None:
        self._checkpointed = wanted
        # "gradient" is what versions before 5.20 call it
        kind = "activation" if hasattr(self.base, "activation_checkpointing_enable") else "gradient"
        if wanted:
            getattr(self.base, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(self.base, f"{kind}_checkpointing_disable")()

    def hidden(self, ids: Tensor, attention: Attention) -> Tensor:
        found: Tensor = self.base(
            input_ids=ids[None], position_ids=attention.positions[None], use_cache=False, packed_rows=attention
        ).last_hidden_state[0]
        return found

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        """Logits (N, V)"""
        tokens = inputs["tokens"]
        attention = PackedCausal(tokens.offsets)
        check_lengths(attention.longest, self.longest)
        logits: Tensor = self.head(self.hidden(tokens.values.long(), attention))
        return logits

    def files(self) -> dict[str, str]:
        return {CONFIG: self.config.to_json_string(use_diff=False), "generation_config.json": self.generation}


class ChangedHead(nn.Module):
    """Logits times `scale`, or drawn together within ±`cap`, as Gemma 2 does."""

    def __init__(self, linear: nn.Module, scale: float, cap: float | None) -> None:
        super().__init__()
        self.linear, self.scale, self.cap = linear, scale, cap

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.linear(hidden) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def positions_of(config: Mapping[str, Any]) -> int:
    """How many positions a Hugging Face configuration has; `CONTEXT` where there is no end to them."""
    return int(config.get("max_position_embeddings") or config.get("n_positions") or CONTEXT)


def logits_change(config: Any) -> tuple[float | None, float]:
    """Cap and scale of the logits, under the names that Gemma, Cohere and Granite give them."""
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return getattr(config, "final_logit_softcapping", None), float(scale)


def register_attention() -> None:
    """Make our attention known to `transformers`; it is used by models that name it, and asks for no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(OURS, _attend)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: Attention,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query (1, H, N, D), key and value (1, K, N, D): (1, N, H, D), as `transformers` wants it."""
    flat = (part[0].transpose(0, 1) for part in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_rows(module.layer_idx, *flat, scale=scale, window=sliding_window, cap=softcap)[None], None


def _json_of(generation: Any) -> str:
    return "{}" if generation is None else str(generation.to_json_string(use_diff=True))
