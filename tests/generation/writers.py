"""Small networks and a tokenizer that write offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fastserve.models.causal import Attention
from fastserve.models.decoder import Decoder, DecoderOptions
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor
from fastserve.text.language_tokenizer import LanguageTokenizer


class Reciter(nn.Module):
    """Says by heart which token follows which, and asks its attention whether it is told the right places."""

    layers, longest = 1, 40

    def __init__(self, follows: Mapping[int, int], vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.head = nn.Linear(vocabulary, vocabulary, bias=False)
        with torch.no_grad():
            self.head.weight.zero_()
            for token, following in follows.items():
                self.head.weight[following, token] = 9.0

    def hidden(self, ids: Tensor, attention: Attention) -> Tensor:
        vectors = nn.functional.one_hot(ids, self.vocabulary).float()
        seen = attention(0, vectors[:, None], vectors[:, None], vectors[:, None], scale=1e-6)[:, 0]
        # with a scale near 0 (kernels multiply by it what is masked) all tokens that are seen count alike, so that
        # their shares tell how many there are
        assert torch.allclose(seen.amin(-1)[attention.positions == 0], torch.zeros(()))
        assert torch.equal(seen.sum(-1).round(), torch.ones(len(ids)))
        return vectors

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        raise NotImplementedError("decoding needs hidden() alone")

    def files(self) -> dict[str, str]:
        return {}


def small_decoder(vocabulary: int = 300, *, form: str = "llama", context: int = 64, seed: int = 0) -> Decoder:
    """Random weights, large enough that the next token is no near tie."""
    torch.manual_seed(seed)
    options = DecoderOptions.model_validate(
        {"layers": 2, "dim": 32, "heads": 4, "key_value_heads": 2, "context": context, "form": form, "feedforward": 64}
    )
    network = Decoder(options, NetworkShape({"tokens": vocabulary}, vocabulary))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(15 if "embed" not in name else 3)
    return network.eval()


def small_tokenizer(texts: Sequence[str] = (), size: int = 300) -> LanguageTokenizer:
    return LanguageTokenizer.train([*texts, "床前明月光，疑是地上霜。", "the cat sat on the mat"], size=size)
