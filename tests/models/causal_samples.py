"""Small causal networks and rows of different lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastserve.models import NetworkShape, RaggedTensor
from fastserve.models.decoder import Decoder, DecoderOptions

VOCABULARY = 61
LENGTHS = [1, 7, 0, 3, 23, 7, 22, 40]


def decoder(seed: int = 0, **options: Any) -> Decoder:
    """Larger weights than at the start of training: differences show."""
    torch.manual_seed(seed)
    small = {"layers": 2, "dim": 32, "heads": 4, "key_value_heads": 2, "feedforward": 48, "context": 64}
    network = Decoder(DecoderOptions(**(small | options)), NetworkShape({"tokens": VOCABULARY}, VOCABULARY))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.dim() == 1 else 0.0))
    return network


def rows(lengths: list[int] = LENGTHS, seed: int = 1, vocabulary: int = VOCABULARY) -> RaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return RaggedTensor(torch.randint(vocabulary, (sum(lengths),), generator=generator, dtype=torch.int32), offsets)


def save(network: nn.Module, folder: Path) -> Path:
    """As a bundle keeps a network."""
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    for name, content in network.files().items():  # type: ignore[operator]
        (folder / name).write_text(content)
    return folder


def row_logits(theirs: Any, tokens: RaggedTensor) -> Tensor:
    """What a model of transformers says of each row alone, end to end."""
    found = []
    with torch.no_grad():
        for start, stop in zip(tokens.offsets[:-1].tolist(), tokens.offsets[1:].tolist(), strict=True):
            if stop > start:
                found.append(theirs(input_ids=tokens.values[None, start:stop].long()).logits[0])
    return torch.cat(found)
