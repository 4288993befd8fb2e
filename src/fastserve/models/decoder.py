"""A causal decoder from a configuration, with random weights, in the form of Llama or of Qwen 3.

RMSNorm before each branch, rotary positions, grouped-query attention, SwiGLU. Its weights have the names that Hugging
Face gives them, so that the saved folder loads there and gives the same logits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fastserve.config import Auto, Positive, Section
from fastserve.models.attention import PackedCausal
from fastserve.models.causal import Attention, TiedHead, check_lengths
from fastserve.models.fused import added_norm, rms_norm, rotate, silu_product
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor

INITIAL = 0.02
"""Standard deviation of first weights (Radford et al. 2019)."""
EPSILON = 1e-6
LAYERS, DIM, CONTEXT = "blocks, one after the other", "size of a token's vector", "most tokens of a row"
"""What options are, which each size has defaults of its own for."""


class DecoderOptions(Section):
    """Options of every decoder."""

    layers: Positive = Field(8, description=LAYERS)
    dim: Positive = Field(384, description=DIM)
    heads: Positive | Auto = Field("auto", description="query heads; auto: dim / 64")
    key_value_heads: Positive | Auto = Field(
        "auto", description="heads of keys and values, each for several query heads; auto: a third, a quarter or half"
    )
    feedforward: Positive | Auto = Field("auto", description="inner size of a block; auto: 8 / 3 of dim")
    context: Positive = Field(512, description=CONTEXT)
    tied: bool = Field(True, description="whether the head's weights are those of the token embedding")
    form: Literal["llama", "qwen3"] = Field("llama", description="qwen3: queries and keys are normalized")
    rope_theta: Annotated[float, Field(gt=1)] = Field(10_000.0, description="base of the waves of rotary positions")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        sizes = sizes_of(self)
        if self.dim % (2 * sizes.heads):
            raise ValueError(f"dim ({self.dim}) must be a multiple of 2 * heads ({2 * sizes.heads})")
        if sizes.heads % sizes.key_value_heads:
            raise ValueError(f"heads ({sizes.heads}) must be a multiple of key_value_heads ({sizes.key_value_heads})")
        return self


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the options of a block come to."""

    dim: int
    head_dim: int
    heads: int
    key_value_heads: int
    feedforward: int


def sizes_of(options: DecoderOptions) -> Sizes:
    heads = max(options.dim // 64, 1) if options.heads == "auto" else options.heads
    share = next(share for share in (3, 4, 2, 1) if heads % share == 0)
    key_value_heads = heads // share if options.key_value_heads == "auto" else options.key_value_heads
    inner = max(round(options.dim / 24), 1) * 64 if options.feedforward == "auto" else options.feedforward
    return Sizes(options.dim, options.dim // heads, heads, key_value_heads, inner)


def hidden_weights(options: DecoderOptions) -> int:
    """How many weights the matrices between the embedding and the head have."""
    sizes = sizes_of(options)
    attention = 2 * sizes.dim * sizes.head_dim * (sizes.heads + sizes.key_value_heads)
    return options.layers * (attention + 3 * sizes.dim * sizes.feedforward)


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, vectors: Tensor) -> Tensor:
        return rms_norm(vectors, self.weight, EPSILON)

    def of_sum(self, vectors: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of both, and it normalized."""
        return added_norm(vectors, added, self.weight, EPSILON)


def angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine (N, 1, head_dim), as `fused.rotate` takes them, of each position's angles (Su et al. 2021)."""
    # as transformers computes them, to the last bit
    exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    angle = (positions[:, None].float() * theta**-exponents)[:, None]
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)


def together(tokens: Tensor, *layers: nn.Module) -> Tensor:
    """What several layers make of the same tokens, side by side: one product of matrices where all are plain.

    A layer with an adapter, or whose weights are not there as a matrix, is called by itself.
    """
    if any(type(layer) is not nn.Linear or layer._forward_pre_hooks or layer._forward_hooks for layer in layers):
        return torch.cat([layer(tokens) for layer in layers], -1)
    weights: list[Tensor] = [layer.get_parameter("weight") for layer in layers]
    if torch.is_autocast_enabled(tokens.device.type):  # which would round them later, when they are twice as many bytes
        weights = [weight.to(torch.get_autocast_dtype(tokens.device.type)) for weight in weights]
    return functional.linear(tokens, torch.cat(weights))


class SelfAttention(nn.Module):
    def __init__(self, sizes: Sizes, form: str) -> None:
        super().__init__()
        self.sizes = sizes
        queries, keys = sizes.heads * sizes.head_dim, sizes.key_value_heads * sizes.head_dim
        self.q_proj = nn.Linear(sizes.dim, queries, bias=False)
        self.k_proj = nn.Linear(sizes.dim, keys, bias=False)
        self.v_proj = nn.Linear(sizes.dim, keys, bias=False)
        self.o_proj = nn.Linear(queries, sizes.dim, bias=False)
        self.is_normal = form == "qwen3"
        if self.is_normal:
            self.q_norm, self.k_norm = RmsNorm(sizes.head_dim), RmsNorm(sizes.head_dim)

    def forward(self, tokens: Tensor, layer: int, attention: Attention, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """tokens (N, dim)"""
        heads, shared, head_dim = self.sizes.heads, self.sizes.key_value_heads, self.sizes.head_dim
        parts = together(tokens, self.q_proj, self.k_proj, self.v_proj).view(len(tokens), -1, head_dim)
        turned, value = torch.split(parts, [heads + shared, shared], 1)  # (N, heads, head_dim)
        if self.is_normal:
            query, key = torch.split(turned, [heads, shared], 1)
            turned = torch.cat([self.q_norm(query), self.k_norm(key)], 1)
        query, key = torch.split(rotate(turned, *rotation), [heads, shared], 1)
        found = attention(layer, query, key, value, scale=head_dim**-0.5)
        output: Tensor = self.o_proj(found.flatten(1))
        return output


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.dim, sizes.feedforward, bias=False)
        self.up_proj = nn.Linear(sizes.dim, sizes.feedforward, bias=False)
        self.down_proj = nn.Linear(sizes.feedforward, sizes.dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.down_proj(silu_product(together(tokens, self.gate_proj, self.up_proj)))
        return output


class Block(nn.Module):
    """Attention and feed-forward, each on the normalized input and added to it."""

    def __init__(self, layer: int, sizes: Sizes, form: str) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RmsNorm(sizes.dim)
        self.self_attn = SelfAttention(sizes, form)
        self.post_attention_layernorm = RmsNorm(sizes.dim)
        self.mlp = FeedForward(sizes)

    def forward(
        self, tokens: Tensor, added: Tensor | None, attention: Attention, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """tokens (N, dim), and what the block before adds to them; so it returns both, still apart."""
        tokens, normal = self.input_layernorm.of_sum(tokens, added)
        found = self.self_attn(normal, self.layer, attention, rotation)
        tokens, normal = self.post_attention_layernorm.of_sum(tokens, found)
        return tokens, self.mlp(normal)


class Body(nn.Module):
    """All but the head. It has no forward of its own: its name is there for the weights' names."""

    def __init__(self, layers: int, sizes: Sizes, vocabulary: int, form: str) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, sizes.dim)
        self.layers = nn.ModuleList(Block(layer, sizes, form) for layer in range(layers))
        self.norm = RmsNorm(sizes.dim)


class Decoder(nn.Module):
    """A causal network (`CausalNetwork`). shape: of the ids of "tokens"; its outputs are the same number.

    checkpoint_blocks: keep the inputs of blocks alone and compute them again in the backward pass.
    """

    encodings: ClassVar[tuple[str, ...]] = ("tokens",)
    Options: ClassVar[type[Section]] = DecoderOptions

    def __init__(self, options: DecoderOptions, shape: NetworkShape) -> None:
        super().__init__()
        self.options, self.sizes, self.vocabulary = options, sizes_of(options), shape.vocabulary["tokens"]
        self.layers, self.checkpoint_blocks = options.layers, False
        self.longest, self.layers = options.context, options.layers
        with torch.device("meta"):  # nothing is drawn but first values
            self.model = Body(options.layers, self.sizes, self.vocabulary, options.form)
            if not options.tied:
                self.lm_head = nn.Linear(self.sizes.dim, self.vocabulary, bias=False)
        if torch.get_default_device().type != "meta":
            self._start()

    def _start(self) -> None:
        self.to_empty(device=torch.get_default_device())
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in self.first_values():
                parameters[name].copy_(value)

    def first_values(self) -> Iterator[tuple[str, Tensor]]:
        """Normal numbers, smaller where they are added to the stream, which keeps its size so (Radford et al. 2019)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                yield name, torch.ones(parameter.shape)
            else:
                is_added = name.endswith(("o_proj.weight", "down_proj.weight"))
                width = INITIAL / math.sqrt(2 * self.layers) if is_added else INITIAL
                yield name, torch.empty(parameter.shape).normal_(std=width)

    @property
    def head(self) -> nn.Module:
        return TiedHead(self.model.embed_tokens) if self.options.tied else self.lm_head

    def hidden(self, ids: Tensor, attention: Attention) -> Tensor:
        tokens = self.model.embed_tokens(ids)
        rotation = angles(attention.positions, self.sizes.head_dim, self.options.rope_theta)
        added: Tensor | None = None
        for block in self.model.layers:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                tokens, added = checkpoint(block, tokens, added, attention, rotation, use_reentrant=False)
            else:
                tokens, added = block(tokens, added, attention, rotation)
        found: Tensor = self.model.norm.of_sum(tokens, added)[1]
        return found

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        """Logits (N, V)"""
        tokens = inputs["tokens"]
        attention = PackedCausal(tokens.offsets)
        check_lengths(attention.longest, self.longest)
        logits: Tensor = self.head(self.hidden(tokens.values.long(), attention))
        return logits

    def files(self) -> dict[str, str]:
        return {
            "config.json": json.dumps(self._configuration(), indent=2),
            "generation_config.json": json.dumps({"_from_model_config": True}, indent=2),
        }

    def _configuration(self) -> dict[str, Any]:
        """What `transformers` reads."""
        sizes, is_llama = self.sizes, self.options.form == "llama"
        return {
            "architectures": ["LlamaForCausalLM" if is_llama else "Qwen3ForCausalLM"],
            "model_type": self.options.form,
            "vocab_size": self.vocabulary,
            "hidden_size": sizes.dim,
            "intermediate_size": sizes.feedforward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.key_value_heads,
            "head_dim": sizes.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.options.context,
            "initializer_range": INITIAL,
            "rms_norm_eps": EPSILON,
            "rope_theta": self.options.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.options.rope_theta},
            "tie_word_embeddings": self.options.tied,
            "attention_bias": False,
            "use_cache": True,
            "torch_dtype": "float32",
        }
