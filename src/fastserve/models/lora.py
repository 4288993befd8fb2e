"""LoRA (Hu et al. 2021, arXiv 2106.09685): small matrices beside frozen ones, through `peft`.

A network stays what it is, with adapters inside: whatever takes a causal network takes it with them. Adapters are saved
as `peft` saves them, or merged into the weights, which then have their own names again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastserve.config import Auto, Fraction, Positive, Section
from fastserve.errors import ConfigError, MissingExtraError, choices

NAME = "default"
"""What `peft` calls an adapter that was given no name."""
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before every name in the weights file of an adapter."""
RATE = 10.0
"""Times the learning rate of full fine-tuning (Schulman et al. 2025, LoRA Without Regret)."""


class LoraOptions(Section):
    """Which weights are added where."""

    rank: Positive = Field(16, description="inner size of the added matrices")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="what is added counts alpha / rank")
    dropout: Fraction = Field(0.0, description="share of inputs that the added matrices do not see")
    targets: list[str] | Auto = Field(
        "auto", description="last parts of the names of the layers that get them; auto: all linear layers but the head"
    )
    base: Literal["full", "8bit", "4bit"] = Field(
        "full", description="how frozen weights are kept; 8bit and 4bit need bitsandbytes and a CUDA device"
    )


def linear_layers(network: nn.Module) -> list[str]:
    """Distinct last parts of the names of all linear layers but the head (`q_proj`, `down_proj`)."""
    blocks = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    found = {
        name.rpartition(".")[2]
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # what GPT-2 has in its place
    }
    return sorted(found)


def add_adapters(network: nn.Module, options: LoraOptions) -> None:
    """Freeze the network's weights and put adapters beside them, which change nothing until they are trained.

    ConfigError where a target is no linear layer of the network or the device cannot hold the base as asked.
    """
    peft = _peft()
    known = linear_layers(network)
    targets = known if options.targets == "auto" else options.targets
    for target in targets:
        if target not in known:
            raise ConfigError(f"LoRA target '{target}' is no linear layer of the network: {choices(target, known)}")
    if options.base != "full":
        _quantize(network, options.base)
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in network.modules()),
        task_type="CAUSAL_LM",
    )
    _inject(network, config)


def load_adapter(network: nn.Module, folder: Path) -> None:
    """Put an adapter that `save_adapter` or `peft` wrote into a network without one."""
    peft = _peft()
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder} cannot be read as a LoRA adapter: {error}. Expected adapter_config.json and {WEIGHTS}"
        ) from error
    _inject(network, config)
    expected = adapter_weights(network)
    if weights.keys() != expected.keys():
        odd = sorted(weights.keys() ^ expected.keys())
        raise ConfigError(f"{folder / WEIGHTS} does not fit this network: {len(odd)} names differ, one is '{odd[0]}'")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])


def _quantize(network: nn.Module, base: str) -> None:
    """Keep the weights of all linear layers but the head in 8 bits (Dettmers et al. 2022, arXiv 2208.07339), or in
    NormalFloat of 4 bits (2023, arXiv 2305.14314). They are rounded when the network goes to the CUDA device.
    """
    if not torch.cuda.is_available():
        raise ConfigError(f"a base in {base} needs a CUDA device, and there is none: use base: full")
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError(f"a base in {base}", "quantized") from error
    names = set(linear_layers(network))
    layers = [(name, layer) for name, layer in network.named_modules() if name.rpartition(".")[2] in names]
    for name, layer in layers:
        if not isinstance(layer, nn.Linear):
            raise ConfigError(f"a base in {base} needs plain linear layers, but '{name}' is {type(layer).__name__}")
        network.set_submodule(name, _quantized(layer, base, bitsandbytes.nn))
    setattr(network, f"is_loaded_in_{base}", True)  # where peft looks


def _quantized(layer: nn.Linear, base: str, kinds: Any) -> nn.Module:
    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    with torch.device("meta"):
        if base == "8bit":
            fresh: nn.Module = kinds.Linear8bitLt(*sizes, has_fp16_weights=False)
            fresh.weight = kinds.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            fresh = kinds.Linear4bit(*sizes, compute_dtype=torch.bfloat16, quant_type="nf4")
            fresh.weight = kinds.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=fresh)
    if layer.bias is not None:
        fresh.bias = layer.bias
    return fresh


def _inject(network: nn.Module, config: Any) -> None:
    network.requires_grad_(False)
    _peft().inject_adapter_in_model(config, network, adapter_name=NAME)


def adapter_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights that train, under the names that `peft` saves them by."""
    return {
        PREFIX + name.replace(f".{NAME}.", "."): tensor
        for name, tensor in network.state_dict().items()
        if ".lora_" in name
    }


def base_weights(network: nn.Module) -> dict[str, Tensor]:
    """The state dict without adapters, under the names that it had before."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict().items()
        if ".lora_" not in name
    }


def save_adapter(network: nn.Module, folder: Path, *, base: str = "") -> None:
    """A folder that `peft.PeftModel.from_pretrained` loads. base: the name or path of the base model, for its config.

    Weights in shards must be whole: call it where `network`'s are.
    """
    configs: Any = getattr(network, "peft_config", None)
    if not configs:
        raise ConfigError("the network has no adapters to save: add them before training, or save all its weights")
    config = copy.copy(configs[NAME])
    config.base_model_name_or_path, config.inference_mode = base, True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_weights(network).items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def merge(network: nn.Module) -> None:
    """Add the adapters to the weights and take them out; weights have their own names again.

    ConfigError where the base is kept in 8 or 4 bits, in which a sum would be rounded away.
    """
    if getattr(network, "is_loaded_in_8bit", False) or getattr(network, "is_loaded_in_4bit", False):
        raise ConfigError(
            "a base in 8 or 4 bits takes no merged adapter: save the adapter, put it into the base with full weights "
            "(load_adapter), and merge it there"
        )
    for name, layer in _layers(network):
        layer.merge(safe_merge=True)
        network.set_submodule(name, layer.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config
    network.requires_grad_(True)


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """While entered, the network computes what it did before it was adapted: the reference of preference tuning.

    Unlike `peft`'s own switch, it leaves what trains as it is, and so may be entered between a loss and its backward
    pass.
    """
    layers = [layer for _, layer in _layers(network)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _layers(network: nn.Module) -> list[tuple[str, Any]]:
    """Name and layer of every adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("LoRA", "lora") from error
    return peft
