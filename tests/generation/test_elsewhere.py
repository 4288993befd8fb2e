"""What runs on CUDA, on tensors that only say so: they have a device, a form and a type, but no numbers.

What mixes devices, asks the kernel with wrong arguments, or waits for a number of the device, fails here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from paged import OLD_TORCH, eagerly
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from writers import small_decoder

from fastserve.generation import memory
from fastserve.generation.calls import Call
from fastserve.generation.choosing import decide
from fastserve.generation.fast_decoder import FastDecoder
from fastserve.generation.job import Job
from fastserve.generation.paged_attention import PageKernel, by_kernel
from fastserve.generation.precision import unwrapped
from fastserve.generation.runner import Part, Runner
from fastserve.generation.sampling import Row, Sampling
from fastserve.generation.step import Place, SwapIn, SwapOut

CUDA = torch.device("cuda")
pytestmark = OLD_TORCH


class Indexed(TorchFunctionMode):
    """Indexing and copying by operators: as torch does them by itself, they ask for a library that is not there."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.copy_:
            return torch.ops.aten.copy_.default(*args)
        if function is Tensor.__setitem__:
            into, index, values = args
            whole = isinstance(index, slice)
            return torch.ops.aten.copy_.default(into, values) if whole else into.index_copy_(0, index, values)
        if function is not Tensor.__getitem__:
            return function(*args, **(kwargs or {}))
        found, dimension = args[0], 0
        for item in args[1] if isinstance(args[1], tuple) else (args[1],):
            if item is None:
                found = found.unsqueeze(dimension)
            elif isinstance(item, slice):
                stop = found.shape[dimension] if item.stop is None else item.stop
                found = torch.ops.aten.slice.Tensor(found, dimension, item.start or 0, stop)
            elif isinstance(item, Tensor):
                found = found.index_select(dimension, item)
            else:
                found = found.select(dimension, item)
                continue
            dimension += 1
        return found


def _kernel_for(network: Any, place: torch.device) -> PageKernel:
    assert place.type == "cuda"
    return by_kernel


Make = Callable[[str, int | None], FastDecoder]


@pytest.fixture
def decoder_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes decoders of a form and a window whose weights are there."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda numbers: torch.empty(numbers.shape, dtype=numbers.dtype))
    monkeypatch.setattr(memory, "kernel_for", _kernel_for)
    monkeypatch.setattr(memory, "recorder", lambda network, place: eagerly)
    networks = {form: small_decoder(context=600, form=form) for form in ("llama", "qwen3")}

    def make(form: str, window: int | None) -> FastDecoder:
        network = networks[form]
        for module in network.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                there = torch.empty(weight.shape, dtype=torch.bfloat16, device=CUDA)
                setattr(module, name, nn.Parameter(there, requires_grad=False))
        call = Call(0.3, window, None, torch.bfloat16, size=8)
        return FastDecoder(network, network.model, [call] * network.layers, "bfloat16", unwrapped)

    with FakeTensorMode(), Indexed():
        yield make


@pytest.mark.parametrize("form", ["llama", "qwen3"])
@pytest.mark.parametrize("window", [None, 5])
def test_steps_stay_on_their_device(form: str, window: int | None, decoder_of: Make) -> None:
    decoder = decoder_of(form, window)
    runner = Runner(decoder, 4)
    logits = [
        runner.read([Part(0, 0, list(range(300)), 0), Part(1, 0, [4], 1)]),
        runner.read([Part(0, 300, [1], 1), Part(1, 1, [4], 1)]),
        runner.read([Part(0, 301, [1, 2, 3], 2), Part(1, 2, [4], 0)]),
    ]
    assert [(tuple(one.shape), one.device.type, one.dtype) for one in logits] == [
        ((rows, 300), "cuda", torch.bfloat16) for rows in (1, 2, 2)
    ]


def test_moves_stay_on_their_device(decoder_of: Make) -> None:
    runner = Runner(decoder_of("llama", None), 4)
    runner.read([Part(0, 0, list(range(300)), 1)])
    jobs = [Job(number, 300, 1, 0.0) for number in range(2)]
    runner.move([Place(jobs[1], 2, 280, source=0), SwapOut(jobs[0], 0, 300)])
    assert all(pair is not None and pair[0].device.type == "cpu" for pair in runner._away[0].layers)
    runner.move([SwapIn(jobs[0], 3, 300)])
    runner.clear(2)
    assert {part.device.type for pair in runner.cache._layers for part in pair} == {"cuda"}


@pytest.mark.parametrize("mixed", [False, True])
def test_choosing_waits_for_nothing(mixed: bool, decoder_of: Make) -> None:
    samplings = [
        Sampling(seed=1, temperature=0.5, top_k=4, min_p=0.1, logit_bias={3: 1.0}, repetition_penalty=1.1),
        Sampling(temperature=0) if mixed else Sampling(seed=2, top_p=0.5),
    ]
    rows = [Row(one, [1, 2], [3], one.draws()) for one in samplings]
    logits = torch.empty(2, 300, device=CUDA, dtype=torch.bfloat16)
    chosen = decide(logits, rows)
    assert (chosen.ids.device.type, chosen.ids.shape) == ("cuda", (2,))
    with pytest.raises(DataDependentOutputException):
        chosen.ids.tolist()
