"""A decoder of the Llama family for decoding: the same numbers as its network, in fewer and larger operations.

Projections that read the same tokens are one product of matrices, made once; nothing is kept for gradients; weights are
in the precision that was asked for. Steps in which each text goes on by one token are one call, where `native` serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastserve.generation.calls import Call, Recorder
from fastserve.generation.native import Panels
from fastserve.generation.native.step import LANES, Block, NativeStep, Shape
from fastserve.generation.precision import Linear, Precision, Wrap, gated, gated_linear_of, linear_of, unwrapped
from fastserve.generation.step_attention import StepAttention
from fastserve.models import fused
from fastserve.models.causal import Attention, CausalNetwork
from fastserve.models.causal_folder import CausalFromFolder
from fastserve.models.decoder import EPSILON, Decoder
from fastserve.models.native import attention as by_rows
from fastserve.models.native import fused as native
from fastserve.models.tensor_parallel import Sum, SummedLinear

FAMILY = ("llama", "qwen2", "qwen3", "mistral")
"""Model types of `transformers` that compute as `Decoder` does, but for biases, windows and scaled positions."""
CLOSE = 1e-3
"""How much of the largest output the outputs of both forms may differ in float32."""


@dataclass(frozen=True, slots=True)
class Norm:
    """weight: times the root of its size, and epsilon times it, so that a sum of squares need not be divided.

    plain, mean_epsilon: both as they were, in float32.
    """

    weight: Tensor
    epsilon: float
    plain: Tensor
    mean_epsilon: float

    @classmethod
    def of(cls, module: Any, dtype: torch.dtype) -> Norm:
        weight = module.weight.detach().float()
        size, epsilon = len(weight), float(getattr(module, "variance_epsilon", EPSILON))
        return cls((weight * size**0.5).to(dtype), size * epsilon, weight, epsilon)

    def __call__(self, vectors: Tensor) -> Tensor:
        """(..., dim)"""
        wide = vectors.float()
        inverse = torch.linalg.vecdot(wide, wide).add_(self.epsilon).rsqrt_()
        normal: Tensor = (wide * inverse.unsqueeze(-1)).to(vectors.dtype)
        return normal.mul_(self.weight)

    def of_sum(self, vectors: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of both, and it normalized."""
        if fused.goes_native(vectors, added, self.plain):
            return native.added_norm(vectors, added, self.plain, self.mean_epsilon)
        together = vectors if added is None else vectors + added
        return together, self(together)


@dataclass(frozen=True, slots=True)
class Layer:
    """What a block computes with."""

    before: Norm
    qkv: Linear
    norms: tuple[Norm, Norm] | None
    output: Linear
    between: Norm
    gated: Linear
    down: Linear
    call: Call


class FastDecoder:
    """What an engine needs of a causal network; to be made by `fast_form`."""

    is_recordable = True
    """Its steps are the same operations whatever the tokens are, and wait for none (`Recorded`)."""

    def __init__(self, network: Any, body: Any, calls: Sequence[Call], precision: Precision, wrap: Wrap) -> None:
        weight = body.embed_tokens.weight.detach()
        attention = body.layers[0].self_attn
        self.device = weight.device
        self.dtype = torch.bfloat16 if precision == "bfloat16" else weight.dtype
        self.layers, self.longest = int(network.layers), int(network.longest)
        is_short = precision in ("int8", "int4") and self.device.type == "cpu" and by_rows.is_there(torch.bfloat16)
        self.kept = torch.bfloat16 if is_short else self.dtype
        """Of keys and values: where weights are rounded to 8 bits, 16 lose nothing more of note."""
        self.embedding = weight.to(self.dtype)
        self.head_size = _head_size(attention)
        self.heads = attention.q_proj.out_features // self.head_size
        self.shared = attention.k_proj.out_features // self.head_size
        self.frequencies, self.amplitude = _waves(network, body, self.head_size)
        self.blocks = [
            _layer(block, call, precision, self.dtype, wrap) for block, call in zip(body.layers, calls, strict=True)
        ]
        self.norm = Norm.of(body.norm, self.dtype)
        head = network.head
        head_precision: Precision = "int8" if precision == "int4" else precision  # what it rounds, nothing smooths
        self.head = linear_of(head.weight, getattr(head, "bias", None), head_precision)
        self.step = self._native_step()

    def hidden(self, ids: Tensor, attention: Attention) -> Tensor:
        """ids int64 (N,) to (N, dim), after the last norm."""
        if self.step is None or not isinstance(attention, StepAttention) or not attention.rows:
            return self._by_layers(ids, attention)
        written = self.step(ids[: attention.rows], attention)
        if not attention.chunks:
            return written
        return torch.cat([written, self._by_layers(ids[attention.rows :], attention.of_chunks())])

    def _by_layers(self, ids: Tensor, attention: Attention) -> Tensor:
        tokens = functional.embedding(ids, self.embedding)
        rotation = self._rotation(attention.positions)
        added: Tensor | None = None
        for place, layer in enumerate(self.blocks):
            tokens, normal = layer.before.of_sum(tokens, added)
            found = layer.output(self._attend(layer, place, normal, attention, rotation))
            tokens, normal = layer.between.of_sum(tokens, found)
            added = layer.down(layer.gated(normal))
        return self.norm.of_sum(tokens, added)[1]

    def _native_step(self) -> NativeStep | None:
        """None where a layer is computed otherwise: with adapters, or with others' shares."""
        blocks = [_native(layer) for layer in self.blocks]
        if self.head_size % LANES or any(block is None for block in blocks):
            return None
        first = self.blocks[0]
        shape = Shape(
            dim=self.embedding.shape[1],
            heads=self.heads,
            shared=self.shared,
            head_size=self.head_size,
            epsilon=self.norm.mean_epsilon,
            head_epsilon=0.0 if first.norms is None else first.norms[0].mean_epsilon,
            amplitude=self.amplitude,
            cache=self.kept,
        )
        found = [block for block in blocks if block is not None]
        return NativeStep(shape, found, self.embedding, self.norm.plain, self.frequencies.float())

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (N, 1, D), the first half of the sine with its sign changed."""
        angles = (positions[:, None].float() * self.frequencies)[:, None]
        cosine, sine = angles.cos() * self.amplitude, angles.sin() * self.amplitude
        return torch.cat([cosine, cosine], -1).to(self.dtype), torch.cat([-sine, sine], -1).to(self.dtype)

    def _attend(
        self, layer: Layer, place: int, tokens: Tensor, attention: Attention, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        """tokens (N, dim): (N, heads * D)"""
        heads, shared, size = self.heads, self.shared, self.head_size
        parts = layer.qkv(tokens).view(len(tokens), heads + 2 * shared, size)
        turned, value = parts[:, : heads + shared], parts[:, heads + shared :]
        if layer.norms is not None:
            turned = torch.cat([layer.norms[0](turned[:, :heads]), layer.norms[1](turned[:, heads:])], 1)
        turned = fused.rotate(turned, *rotation)
        turned, value = turned.to(self.kept), value.to(self.kept)
        found = attention(
            place, turned[:, :heads], turned[:, heads:], value, scale=layer.call.scale, window=layer.call.window
        )
        return found.reshape(len(tokens), heads * size).to(self.dtype)


@torch.inference_mode()
def fast_form(network: CausalNetwork, precision: Precision, wrap: Wrap = unwrapped) -> FastDecoder | None:
    """A `FastDecoder` of the network, or None where it is not of the family.

    In float32 it must give the network's own numbers on some tokens; else the network is taken for unknown.
    """
    body = _body(network)
    if body is None:
        return None
    ids = torch.arange(1, 9, device=body.embed_tokens.weight.device) % len(body.embed_tokens.weight)
    recorder = Recorder(torch.tensor([0, 5, 8], device=ids.device))
    expected = network.hidden(ids, recorder)
    calls = [recorder.calls[place] for place in range(network.layers)]
    plain = FastDecoder(network, body, calls, "float32", wrap)
    close = CLOSE * float(expected.abs().max())
    known = torch.allclose(plain.hidden(ids, recorder), expected, rtol=CLOSE, atol=close)
    if not known or any(call.cap is not None for call in calls):
        return None
    return plain if precision == "float32" else FastDecoder(network, body, calls, precision, wrap)


def _body(network: CausalNetwork) -> Any:
    if isinstance(network, Decoder):
        body: Any = network.model
    elif isinstance(network, CausalFromFolder) and network.config.model_type in FAMILY:
        body = network.base
        if network.config.hidden_act != "silu" or type(network.head).__name__ == "ChangedHead":
            return None
    else:
        return None
    linears = [module for module in body.modules() if module is not body and isinstance(module, nn.Linear)]
    known = all(type(module) in (nn.Linear, SummedLinear) for module in linears)
    adapted = not known or len(linears) != 7 * len(body.layers)
    return None if adapted else body


def _head_size(attention: Any) -> int:
    return int(attention.sizes.head_dim if hasattr(attention, "sizes") else attention.head_dim)


def _waves(network: Any, body: Any, head_size: int) -> tuple[Tensor, float]:
    """Angle of each pair of features at position 1 (D / 2,), and what their waves are multiplied by."""
    place = body.embed_tokens.weight.device
    if isinstance(network, Decoder):
        exponents = torch.arange(0, head_size, 2, device=place) / head_size
        return network.options.rope_theta**-exponents, 1.0
    rotary = body.rotary_emb
    return rotary.inv_freq.detach().float(), float(getattr(rotary, "attention_scaling", 1.0))


def _layer(block: Any, call: Call, precision: Precision, dtype: torch.dtype, wrap: Wrap) -> Layer:
    attention, feed = block.self_attn, block.mlp
    norms = (
        (Norm.of(attention.q_norm, dtype), Norm.of(attention.k_norm, dtype)) if hasattr(attention, "q_norm") else None
    )

    def joined(*layers: nn.Linear) -> Linear:
        weight, bias = _together(layers)
        linear = wrap(layers, linear_of(weight, bias, precision))
        return _summed(linear, layers[0].sum_up) if isinstance(layers[0], SummedLinear) else linear

    def joined_gate(*layers: nn.Linear) -> Linear:
        if wrap is unwrapped:
            return gated_linear_of(*_together(layers), precision)
        return gated(joined(*layers))

    return Layer(
        Norm.of(block.input_layernorm, dtype),
        joined(attention.q_proj, attention.k_proj, attention.v_proj),
        norms,
        joined(attention.o_proj),
        Norm.of(block.post_attention_layernorm, dtype),
        joined_gate(feed.gate_proj, feed.up_proj),
        joined(feed.down_proj),
        call,
    )


def _native(layer: Layer) -> Block | None:
    """The layer as `NativeStep` takes it, if it is all of panels."""
    linears = (layer.qkv, layer.output, layer.gated, layer.down)
    qkv, output, gate, down = (one if isinstance(one, Panels) else None for one in linears)
    if qkv is None or output is None or gate is None or down is None or layer.call.cap is not None:
        return None
    return Block(
        before=layer.before.plain,
        qkv=qkv,
        norms=None if layer.norms is None else (layer.norms[0].plain, layer.norms[1].plain),
        output=output,
        between=layer.between.plain,
        gated=gate,
        down=down,
        scale=layer.call.scale,
        window=layer.call.window,
    )


def _summed(linear: Linear, sum_up: Sum) -> Linear:
    """Of a share of the inputs."""
    return lambda tokens: sum_up(linear(tokens))


def _together(layers: tuple[nn.Linear, ...]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of several layers that read the same, one below the other."""
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers]
    if all(bias is None for bias in biases):
        return weight.detach(), None
    found: list[Tensor] = [
        torch.zeros_like(one.weight[:, 0]) if bias is None else bias for one, bias in zip(layers, biases, strict=True)
    ]
    return weight.detach(), torch.cat(found).detach()
