"""The loss in chunks is the plain formula, with the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastserve.models import NetworkShape, RaggedTensor
from fastserve.models.attention import PackedCausal
from fastserve.models.decoder import Decoder, DecoderOptions
from fastserve.tasks.token_loss import NextTokens, plain_token_loss, row_scores, token_loss


class Capped(nn.Module):
    """A head with a bias and a cap, as Gemma 2's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 11)

    def forward(self, hidden: Tensor) -> Tensor:
        return 3 * torch.tanh(self.linear(hidden) / 3)


def small(**options: bool) -> Decoder:
    torch.manual_seed(0)
    sizes = {"layers": 1, "dim": 16, "heads": 2, "context": 32}
    return Decoder(DecoderOptions(**sizes, **options), NetworkShape({"tokens": 23}, 23)).double()


def tokens(weights: Tensor | None = None) -> RaggedTensor:
    values = torch.randint(23, (14,), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    return RaggedTensor(values, torch.tensor([0, 5, 5, 6, 14]), weights)


@pytest.mark.parametrize("head", [nn.Linear(6, 11, bias=False), Capped()])
@pytest.mark.parametrize("z_loss", [0.0, 0.5])
def test_value_and_gradients_are_those_of_the_formula(head: nn.Module, z_loss: float) -> None:
    head = head.double()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(11, (10,), generator=generator)
    weights = torch.randn(10, generator=generator)  # negative ones too, as in preferences
    found = []
    for loss in (plain_token_loss, lambda *parts, **options: token_loss(*parts, **options, chunk=4)):
        head.zero_grad()
        piece = hidden.clone().requires_grad_()
        value = loss(head, piece, targets, weights, z_loss=z_loss)
        (value / 7).backward()
        found.append([value.detach(), piece.grad, *(parameter.grad for parameter in head.parameters())])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right)
    with torch.no_grad():
        torch.testing.assert_close(token_loss(head, hidden, targets, weights, z_loss=z_loss, chunk=3), found[0][0])


def test_a_frozen_head_hands_gradients_on_and_has_none() -> None:
    head = nn.Linear(6, 11, bias=False).requires_grad_(False)
    found = []
    for loss in (plain_token_loss, token_loss):
        hidden = torch.ones(3, 6, requires_grad=True)
        loss(head, hidden, torch.tensor([1, 2, 3]), torch.ones(3)).backward()
        found.append(hidden.grad)
    torch.testing.assert_close(*found)
    assert head.weight.grad is None


def test_autocast_computes_products_in_half_and_gives_gradients_in_full() -> None:
    torch.manual_seed(0)
    head, targets, weights = nn.Linear(16, 50, bias=False), torch.arange(40), torch.ones(40)
    found = []
    for dtype in (None, torch.bfloat16):
        head.zero_grad()
        hidden = torch.randn(40, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = token_loss(head, hidden, targets, weights, chunk=16)
        loss.backward()
        found.append((loss, hidden.grad, head.weight.grad))
    for full, half in zip(*found, strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_a_whole_network_with_tied_or_free_embeddings(tied: bool) -> None:
    network, rows = small(tied=tied), tokens()
    counted = NextTokens.of(rows)
    found = []
    for loss in (plain_token_loss, lambda *parts: token_loss(*parts, chunk=4)):
        network.zero_grad()
        hidden = network.hidden(rows.values.long(), PackedCausal(rows.offsets))[counted.places]
        loss(network.head, hidden, counted.targets, counted.weights).backward()
        found.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_what_counts_is_what_follows_within_a_row_and_has_a_weight() -> None:
    weights = torch.ones(14)
    weights[:3], weights[8] = 0, 0.5
    counted = NextTokens.of(tokens(weights))
    assert counted.places.tolist() == [2, 3, 6, 7, 8, 9, 10, 11, 12]
    assert counted.rows.tolist() == [0, 0, 3, 3, 3, 3, 3, 3, 3]
    assert counted.weights.tolist() == [1, 1, 1, 0.5, 1, 1, 1, 1, 1]
    assert counted.targets.tolist() == tokens().values[counted.places + 1].tolist()


def test_scores_of_rows_are_sums_over_their_counted_tokens() -> None:
    network = small(tied=True).float()
    weights = torch.ones(14)
    weights[1] = 0
    rows = tokens(weights)
    scores = row_scores(network, rows, chunk=4)
    with torch.no_grad():
        shares = network({"tokens": rows}).log_softmax(-1)
    expected = torch.zeros(4, 2)
    for row, (start, stop) in enumerate(((0, 5), (5, 5), (5, 6), (6, 14))):
        for place in range(start, stop - 1):
            weight = float(weights[place + 1])
            expected[row] += torch.tensor([-weight * float(shares[place, int(rows.values[place + 1])]), weight])
    torch.testing.assert_close(scores, expected)


def test_a_batch_without_a_counted_token_has_a_loss_of_zero_and_gradients() -> None:
    network = small(tied=True)
    rows = tokens(torch.zeros(14))
    counted = NextTokens.of(rows)
    hidden = torch.zeros(len(counted.places), 16, dtype=torch.float64, requires_grad=True)
    token_loss(network.head, hidden, counted.targets, counted.weights).backward()
    assert not network.head.get_parameter("embedding.weight").grad.any()
    assert row_scores(network.float(), rows).tolist() == [[0, 0]] * 4
