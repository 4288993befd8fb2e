"""A network that several processes share: the first one decides, and tells the others what it computes.

The first process has the scheduler, the texts and the `SharedNetwork`; the others have their share of the weights and
of the cache, and `follow`: they do the moves and forward passes that they hear of. Nothing else of the engine knows of
them. Messages are JSON in a broadcast of `torch.distributed`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastserve.errors import WorkError
from fastserve.generation.adapters import Adapters
from fastserve.generation.cache import RowCache
from fastserve.generation.forms import Form, form_of
from fastserve.generation.job import Job
from fastserve.generation.network import Decodes, device_of
from fastserve.generation.precision import Precision
from fastserve.generation.reference import generate
from fastserve.generation.runner import Part, Runner
from fastserve.generation.sampling import Sampling
from fastserve.generation.step import Move, Place, SwapIn, SwapOut
from fastserve.generation.writing import Written
from fastserve.models.attention import PackedCausal
from fastserve.models.causal import Attention
from fastserve.models.decoder import Decoder
from fastserve.models.ragged import RaggedTensor

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from fastserve.text.language_tokenizer import LanguageTokenizer

IDLE = timedelta(days=365)
"""How long the others wait for something to do; that the first one is gone they notice by its connection."""
LOOPBACK = ("lo", "lo0")
"""What the interface is called on Linux and on macOS."""
MESSAGE = 2048
"""Bytes that every message takes at least, so that most are whole in one broadcast."""
_HEAD = 8
_KINDS: dict[str, type[Any]] = {"place": Place, "out": SwapOut, "in": SwapIn}


def join(store: Store, rank: int, processes: int) -> None:
    """Meet the other processes of this machine, all of which know `store`; they talk over the loopback interface."""
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name in LOOPBACK)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=IDLE)


def bytes_of(network: nn.Module) -> list[int]:
    """Of the weights that each process has, the first one's first. All must call it."""
    own = torch.tensor([sum(parameter.nbytes for parameter in network.parameters())])
    found = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    return [int(one) for one in found]


class Others:
    """The other processes, as the first one sees them."""

    def __init__(self) -> None:
        self.count = dist.get_world_size() - 1
        self._is_amid = False

    @contextmanager
    def do(self, what: str, **fields: Any) -> Iterator[None]:
        """Have them do something; who enters does the same, to the end, so that nobody waits for a sum in vain.

        WorkError where something before this ended half-way: the processes are not at the same place any more.
        """
        if self._is_amid:
            raise WorkError("the processes that share this network have lost step with each other: start them again")
        self._is_amid = True
        _say({"do": what, **fields})
        yield
        self._is_amid = False


class SharedForm:
    """What decodes, of which each process has its share (`Decodes`). `name`: by which the others know theirs."""

    def __init__(self, name: str, own: Decodes, others: Others, adapters: Adapters | None = None) -> None:
        self.name, self.own, self.others, self.adapters = name, own, others, adapters

    @property
    def layers(self) -> int:
        return self.own.layers

    @property
    def longest(self) -> int:
        return self.own.longest

    @property
    def head(self) -> Any:
        return self.own.head

    @property
    def device(self) -> torch.device:
        return device_of(self.own)

    def hidden(self, ids: Tensor, attention: Attention) -> Tensor:
        """Of whole rows; rows that grow go through a `runner`."""
        if not isinstance(attention, PackedCausal):
            raise TypeError(f"{type(attention).__name__}: processes that share a network are told of whole rows alone")
        with self.others.do("rows", form=self.name, ids=ids.tolist(), offsets=attention.offsets.tolist()):
            return self.own.hidden(ids, attention)

    def runner(self, slots: int, books: RowCache | None = None) -> LeadingRunner:
        """Of all runners the last one that was made is in use. books: nobody asks for them where rows are whole."""
        return LeadingRunner(self, slots)


class SharedNetwork(SharedForm):
    """A causal network (`CausalNetwork`) in the first process; made once the others have joined and `follow`.

    share: of this process.
    """

    def __init__(self, share: Decoder) -> None:
        super().__init__("plain", share, Others())
        self.share, self.is_closed = share, False
        self.weight_bytes = bytes_of(share)
        """Of each process."""

    @property
    def processes(self) -> int:
        return self.others.count + 1

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        """Logits (N, V)"""
        tokens = inputs["tokens"]
        logits: Tensor = self.head(self.hidden(tokens.values.long(), PackedCausal(tokens.offsets)))
        return logits

    def files(self) -> dict[str, str]:
        return self.share.files()

    def form(self, precision: Precision, folders: Mapping[str, Path]) -> SharedForm:
        """What an engine decodes with. folders: of adapters by name."""
        named = {name: str(folder.resolve()) for name, folder in folders.items()}
        with self.others.do("form", precision=precision, folders=named):
            form = form_of(self.share, precision, folders, (0, self.processes))
        return SharedForm("fast", form.network, self.others, form.adapters)

    @torch.inference_mode()
    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        eos: Collection[int],
        tokenizer: LanguageTokenizer | None = None,
    ) -> list[Written]:
        """What the plain loop writes. Every process runs it: they sum up to the same bits, and so choose alike."""
        sampling = Sampling(temperature=0, max_tokens=tokens)
        told = {"prompts": [list(prompt) for prompt in prompts], "tokens": tokens, "eos": list(eos)}
        with self.others.do("greedy", **told):
            return generate(self.share, prompts, sampling, eos=eos, tokenizer=tokenizer)

    def close(self) -> None:
        """The others may end."""
        self.is_closed = True
        with self.others.do("end"):
            dist.destroy_process_group()


class LeadingRunner(Runner):
    """The first process's: the others do what it does.

    How much of a row is kept after a wrong guess they are not told: to keep more of it does no harm.
    """

    def __init__(self, form: SharedForm, slots: int) -> None:
        super().__init__(form.own, slots, form.adapters)
        self._others = form.others
        with self._others.do("runner", form=form.name, slots=slots):
            pass

    def move(self, moves: Iterable[Move]) -> None:
        moves = list(moves)
        if moves:
            with self._others.do("move", moves=[_written(move) for move in moves]):
                super().move(moves)

    def read(self, parts: Sequence[Part]) -> Tensor:
        with self._others.do("read", parts=[_part(part) for part in parts]):
            return super().read(parts)

    def clear(self, slot: int) -> None:
        with self._others.do("clear", slot=slot):
            super().clear(slot)

    def forget(self, job: int) -> None:
        if job in self._away:
            with self._others.do("forget", job=job):
                super().forget(job)


@torch.inference_mode()
def follow(share: Decoder) -> None:
    """What all processes but the first do, until it ends: what it does. share: of this process.

    After it the process is to end by `os._exit`: torch ends a group in order only where all of it is still there.
    """
    forms = {"plain": Form(share)}
    part = dist.get_rank(), dist.get_world_size()
    bytes_of(share)
    runner: Runner | None = None
    while (message := _hear())["do"] != "end":
        match message["do"]:
            case "form":
                folders = {name: Path(folder) for name, folder in message["folders"].items()}
                forms["fast"] = form_of(share, message["precision"], folders, part)
            case "rows":
                offsets = PackedCausal(torch.tensor(message["offsets"]))
                forms[message["form"]].network.hidden(torch.tensor(message["ids"], dtype=torch.int64), offsets)
            case "greedy":
                sampling = Sampling(temperature=0, max_tokens=message["tokens"])
                generate(share, message["prompts"], sampling, eos=message["eos"])
            case "runner":
                runner = forms[message["form"]].runner(message["slots"])
            case _ if runner is not None:
                _step(runner, message)


def _step(runner: Runner, message: Mapping[str, Any]) -> None:
    match message["do"]:
        case "move":
            runner.move([_read(move) for move in message["moves"]])
        case "read":
            runner.read([Part(*part) for part in message["parts"]])
        case "forget":
            runner.forget(message["job"])
        case "clear":
            runner.clear(message["slot"])


def _part(part: Part) -> list[Any]:
    """Of which the first process alone needs the logits."""
    return [part.slot, part.start, list(part.ids), 0, part.adapter]


def _written(move: Move) -> list[Any]:
    kind = next(name for name, known in _KINDS.items() if isinstance(move, known))
    last = [move.copied, move.source] if isinstance(move, Place) else [move.tokens]
    return [kind, move.job.id, move.slot, *last]


def _read(written: list[Any]) -> Move:
    kind, job, *others = written
    move: Move = _KINDS[kind](Job(job, prompt_length=1, max_tokens=1, arrival=0.0), *others)
    return move


def _say(message: dict[str, Any]) -> None:
    content = json.dumps(message).encode()
    padded = len(content).to_bytes(_HEAD, "little") + content.ljust(MESSAGE - _HEAD)
    whole = torch.frombuffer(bytearray(padded), dtype=torch.uint8)
    dist.broadcast(whole[:MESSAGE], 0)
    if len(whole) > MESSAGE:
        dist.broadcast(whole[MESSAGE:], 0)


def _hear() -> dict[str, Any]:
    first = torch.empty(MESSAGE, dtype=torch.uint8)
    dist.broadcast(first, 0)
    content = first.numpy().tobytes()
    size = int.from_bytes(content[:_HEAD], "little")
    if size > MESSAGE - _HEAD:
        rest = torch.empty(size + _HEAD - MESSAGE, dtype=torch.uint8)
        dist.broadcast(rest, 0)
        content += rest.numpy().tobytes()
    message: dict[str, Any] = json.loads(content[_HEAD : _HEAD + size])
    return message
