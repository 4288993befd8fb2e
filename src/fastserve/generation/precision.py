"""Linear layers for decoding, in the precision that was asked for, and what that costs in loss.

On a processor a step's time is that of reading the weights, so that packed weights of 16 or 8 bits are worth more than
anything else: by kernels of our own where they can be built (`native`), else by those that torch carries, oneDNN's and
FBGEMM's (Khudia et al. 2021, arXiv 2101.05615).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastserve import device
from fastserve.errors import ConfigError
from fastserve.generation import native
from fastserve.generation.likelihood import MOST_TOKENS
from fastserve.generation.network import Decodes, device_of
from fastserve.models.attention import PackedCausal
from fastserve.models.causal import CausalNetwork
from fastserve.models.fused import silu_product

Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]
Linear = Callable[[Tensor], Tensor]
"""(N, in) to (N, out)."""
Wrap = Callable[[Sequence[nn.Module], Linear], Linear]
"""Layers that read the same tokens, and what computes them together, to what is to be called in its place."""
LARGEST_HALF = 65_504.0
ENGINE = "fbgemm"


def unwrapped(layers: Sequence[nn.Module], linear: Linear) -> Linear:
    return linear


def pick(wanted: str, place: torch.device) -> Precision:
    """What `auto` means: bfloat16 where the hardware multiplies it fast, else 16 bits where there are kernels for that.

    ConfigError for what this machine cannot do.
    """
    packs = place.type == "cpu" and ENGINE in torch.backends.quantized.supported_engines
    if wanted == "auto":
        if device.pick_precision("auto", place) is torch.bfloat16:
            return "bfloat16"
        return "float16" if packs else "float32"
    if wanted in ("float16", "int8") and not packs:
        raise ConfigError(
            f"precision {wanted} needs kernels ({ENGINE}) that torch has for x86 processors only: use float32 or "
            "bfloat16"
        )
    if wanted == "int4" and not native.serves("int4", torch.empty(0, device=place)):
        raise ConfigError(
            "precision int4 needs a processor with AVX-512 VNNI and a C compiler (gcc): use int8, or what auto finds"
        )
    found: Precision = next(one for one in get_args(Precision) if one == wanted)
    return found


def linear_of(weight: Tensor, bias: Tensor | None, precision: Precision) -> Linear:
    """weight (out, in). float16, int8 and int4 take and give float32, and keep a packed copy of the weight."""
    if native.serves(precision, weight):
        return _panels(weight, bias, precision)
    if precision == "float16":
        return _half(weight, bias)
    if precision == "int8":
        return _int8(weight, bias)
    kind = torch.bfloat16 if precision == "bfloat16" else weight.dtype
    weight, bias = weight.detach().to(kind), None if bias is None else bias.detach().to(kind)
    return _packed(weight, bias) if _packs(weight) else lambda tokens: functional.linear(tokens, weight, bias)


def gated_linear_of(weight: Tensor, bias: Tensor | None, precision: Precision) -> Linear:
    """weight (2 * out, in): the first half of the outputs gates the other, by SiLU."""
    if native.serves(precision, weight):
        return _panels(weight, bias, precision, gated=True)
    return gated(linear_of(weight, bias, precision))


def _panels(weight: Tensor, bias: Tensor | None, kind: native.Kind, *, gated: bool = False) -> Linear:
    if kind == "int4":
        rounded, scales = _four_bits(weight.detach().float())
        return native.Panels(rounded, bias, kind, gated=gated, scales=scales)
    if kind != "int8":
        return native.Panels(weight, bias, kind, gated=gated)
    scales = _scales(weight)
    rounded = (weight.detach().float() / scales[:, None]).round_().clamp_(-127, 127)
    # of many tokens the products of 8 bits are FBGEMM's, which keeps its own copy
    return native.Panels(rounded, bias, kind, gated=gated, scales=scales, many=_int8(weight, bias))


def gated(linear: Linear) -> Linear:
    """(N, in) to (N, out), of a layer that has 2 * out outputs, the first half of which gates the other, by SiLU."""

    return lambda tokens: silu_product(linear(tokens))


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by the weight with instructions that the processor has."""
    x86 = weight.device.type == "cpu" and ENGINE in torch.backends.quantized.supported_engines
    library: Any = torch.backends.mkldnn
    if not x86 or not library.is_available():
        return False
    has_bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and has_bfloat16)


def _packed(weight: Tensor, bias: Tensor | None) -> Linear:
    """The weight laid out once as oneDNN's kernels read it, as torch's compiler does: two thirds of the time with
    few tokens, for which else each call would lay it out anew."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def linear(tokens: Tensor) -> Tensor:
        found: Tensor = multiply(tokens, packed, bias, "none", [], "")
        return found

    return linear


def _half(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights of 16 bits, products and sums of 32."""
    largest = float(weight.detach().abs().max())
    if not largest < LARGEST_HALF:
        raise ConfigError(f"a weight of {largest:.3g} does not fit into 16 bits: use precision float32")
    packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().float(), _floats(bias))
    multiply = torch.ops.quantized.linear_dynamic_fp16

    def linear(tokens: Tensor) -> Tensor:
        found: Tensor = multiply(tokens, packed)
        return found

    return linear


def _int8(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights of 8 bits with a scale for each output; inputs are rounded to 8 bits when they come."""
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to replace the constructor, not the kernels
        rounded = torch.quantize_per_channel(weight.detach().float(), _scales(weight), zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(rounded, _floats(bias))
    multiply = torch.ops.quantized.linear_dynamic
    # sums of two products stay within 16 bits, which instruction sets before VNNI need, with inputs of 7 bits
    narrow = not {"avx512_vnni", "avx_vnni"} & device.processor_flags()

    def linear(tokens: Tensor) -> Tensor:
        found: Tensor = multiply(tokens, packed, reduce_range=narrow)
        return found

    return linear


def _four_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (out, in), -8 to 7, and a scale for every `SPAN` inputs (out, spans), by which the largest of them is -8."""
    outputs, inputs = weight.shape
    spans = functional.pad(weight, (0, -inputs % native.SPAN)).view(outputs, -1, native.SPAN)
    largest = spans.gather(2, spans.abs().argmax(2, keepdim=True))
    scales = torch.where(largest == 0, 1.0, largest / -8)
    rounded = (spans / scales).round_().clamp_(-8, 7).to(torch.int8)
    return rounded.view(outputs, -1)[:, :inputs], scales.squeeze(2)


def _scales(weight: Tensor) -> Tensor:
    """float32 (out,): by which numbers of 8 bits are multiplied."""
    return weight.detach().float().abs().amax(1).clamp(min=1e-8) / 127


def lighter(network: CausalNetwork, precision: Precision, wrap: Wrap = unwrapped) -> CausalNetwork:
    """A copy of any network, whose linear layers are in the precision; its head and all else stay as they are.

    With bfloat16 all of it is.
    """
    shared = {id(parameter): parameter for parameter in _module(network).parameters()}
    copied: Any = copy.deepcopy(network, shared)
    originals = dict(_module(network).named_modules())
    for name, layer in list(copied.named_modules()):
        weight = _matrix(layer)
        if weight is not None and weight is not getattr(copied.head, "weight", None):
            linear = linear_of(weight, layer.bias, precision)
            copied.set_submodule(name, Packed(wrap([originals[name]], linear)))
    if precision == "bfloat16":
        copied = copy.deepcopy(copied).to(torch.bfloat16)
    light: CausalNetwork = copied
    return light


class Packed(nn.Module):
    """A linear layer of any number of dimensions."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.linear(tokens.reshape(-1, tokens.shape[-1]))
        return found.view(*tokens.shape[:-1], found.shape[-1])


def _module(network: Any) -> nn.Module:
    module: nn.Module = network
    return module


def _matrix(layer: nn.Module) -> Tensor | None:
    """The weight (out, in) of a linear layer, also of the kind that GPT-2 has in its place."""
    if type(layer) is nn.Linear:
        return layer.weight
    return layer.get_parameter("weight").t().contiguous() if type(layer).__name__ == "Conv1D" else None


def _floats(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float()


@torch.inference_mode()
def loss(network: Decodes, rows: Sequence[Sequence[int]]) -> float:
    """Mean negative log-likelihood in nats of each row's tokens but the first, of rows of two tokens and more."""
    total, count = 0.0, 0
    place = device_of(network)
    for row in rows:
        ids = torch.tensor(list(row[: min(network.longest, MOST_TOKENS)]), device=place)
        hidden = network.hidden(ids, PackedCausal(torch.tensor([0, len(ids)], device=place)))
        logs = network.head(hidden[:-1]).float().log_softmax(-1).gather(1, ids[1:, None])
        total, count = total - float(logs.sum()), count + len(logs)
    return total / max(count, 1)


def check_loss(plain: Decodes, fast: Decodes, rows: Sequence[Sequence[int]], most: float) -> float:
    """By what share the loss rises on given rows. ConfigError where that is more than `most`."""
    before, after = loss(plain, rows), loss(fast, rows)
    rise = after / before - 1
    if not rise <= most:
        raise ConfigError(
            f"with this precision the loss on the given texts rises from {before:.4f} to {after:.4f} nats a token, by "
            f"{rise:.1%}, where {most:.1%} is allowed: use precision float32, or raise loss_rise"
        )
    return rise
