"""A bundle's network, shared by several processes of this machine: started, given their shares, and followed.

    network = share_network(bundle, 2)        # this process has the first share, and decides

No process ever has the whole weights in its memory. The others are `python -m fastserve.bundle.shares`: they read
their order from standard input, and end when it does, which is when this process is gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from fastserve import device, log
from fastserve.bundle.bundle import Bundle
from fastserve.bundle.format import WEIGHTS
from fastserve.bundle.weights import open_weights
from fastserve.errors import BundleError, ConfigError, FastServeError, WorkError

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

    from fastserve.bundle.weights import Array
    from fastserve.generation.parallel import SharedNetwork
    from fastserve.models.decoder import Decoder

START_SECONDS = 600.0
"""Time in which the others must have their share of the weights."""
LOST = 71
"""The exit code of a process that ends because another one that shares its network has ended."""
_LOOK_SECONDS, _LAST_SECONDS = 0.02, 1.0


def share_network(bundle: Bundle, processes: int, place: str = "auto") -> SharedNetwork:
    """Start the others, and read this process's share; torch's threads are divided among all of them.

    When one of the others ends, so does this process, with the exit code `LOST`. place: a device name as torch knows
    it, or auto. ConfigError for a network that cannot be split so, WorkError where the others do not come.
    """
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    from fastserve.generation import parallel
    from fastserve.models import sums

    check(bundle, processes, place)
    if dist.is_initialized():
        raise ConfigError("this process shares a network already: use another process for the second one")
    threads = max(torch.get_num_threads() // processes, 1)
    torch.set_num_threads(threads)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    memory = sums.create(processes)
    others = [_start(bundle, port, rank, processes, threads, memory) for rank in range(1, processes)]
    try:
        share = read_share(bundle, 0, processes, memory)
        _await(store, others)
        parallel.join(store, 0, processes)
        network = parallel.SharedNetwork(share)
    except BaseException:
        for process in others:
            process.kill()
            process.communicate()
        raise
    for process in others:
        threading.Thread(target=_watch, args=(network, process), name="watch", daemon=True).start()
    return network


def check(bundle: Bundle, processes: int, place: str = "auto") -> None:
    """ConfigError where the network of a bundle cannot be split among so many processes, BundleError where the weights
    are not its."""
    from fastserve.bundle.bundle import ADAPTER
    from fastserve.models import find, tensor_parallel
    from fastserve.models.builtin import BUILTIN
    from fastserve.models.decoder import Decoder

    name = bundle.manifest.network.name
    kind = find(name, saved_in=bundle.folder, causal=True)
    if not (isinstance(kind, type) and issubclass(kind, Decoder)):
        known = ", ".join(name for name, reads in BUILTIN.items() if reads.causal)
        raise ConfigError(
            f"tensor_parallel = {processes}: the network '{name}' of {bundle.folder} cannot be split; those that can "
            f"are {known}"
        )
    if (bundle.folder / ADAPTER).is_dir():
        raise ConfigError(
            f"tensor_parallel = {processes}: {bundle.folder} keeps a LoRA adapter apart from its weights, and is not "
            "split: tune it with model.merge=true, or serve the model that it was tuned from with --adapters"
        )
    if (at := device.pick_device(place)).type != "cpu":
        raise ConfigError(
            f"tensor_parallel = {processes}: processes share a network on the processor, but this machine has a GPU "
            f"({at}), on which one serves it faster: leave it out, or hide the GPU with CUDA_VISIBLE_DEVICES="
        )
    network = _empty(bundle)
    tensor_parallel.check(network, processes)
    weights = open_weights(bundle.folder / WEIGHTS)
    wanted = {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
    found = {name: weights.shape(name) for name in weights}
    if wrong := sorted(wanted.items() ^ found.items()):
        raise BundleError(
            f"{bundle.folder}: the weights do not fit the network '{name}', for instance {wrong[0]}; publish or import "
            "the model again"
        )


def _empty(bundle: Bundle) -> Decoder:
    """The network of a bundle on the meta device."""
    from typing import cast

    import torch

    from fastserve.models import NetworkShape, build

    spec = bundle.manifest.network
    with torch.device("meta"):
        network = build(spec.name, spec.options, NetworkShape(**spec.shape), saved_in=bundle.folder, causal=True)
    return cast("Decoder", network)


def read_share(bundle: Bundle, rank: int, processes: int, memory: int | None) -> Decoder:
    """The share of one process, in evaluation mode, read from the weights' file a tensor at a time.

    memory: of `models.sums`, which is closed.
    """
    from fastserve.models.sums import MemorySums
    from fastserve.models.tensor_parallel import Sum, split, sum_by_messages

    sum_up: Sum = sum_by_messages
    if memory is not None:
        sum_up = MemorySums(memory, rank, processes)
        os.close(memory)
    tensors = _Tensors(open_weights(bundle.folder / WEIGHTS))
    return split(_empty(bundle), rank, processes, tensors, sum_up).eval().requires_grad_(False)


class _Tensors(Mapping[str, "torch.Tensor"]):
    """Arrays as tensors on the same memory."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.arrays[name])

    def __iter__(self) -> Any:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


# The first process


def _start(
    bundle: Bundle, port: int, rank: int, processes: int, threads: int, memory: int | None
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastserve.bundle.shares"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=() if memory is None else (memory,),
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    order = {"folder": str(bundle.folder.resolve()), "port": port, "rank": rank, "processes": processes}
    if process.stdin is not None:
        process.stdin.write(json.dumps({**order, "threads": threads, "memory": memory}).encode() + b"\n")
        process.stdin.flush()
    return process


def _await(store: Store, others: list[subprocess.Popen[bytes]]) -> None:
    """Until all have their share."""
    keys = [_key(rank) for rank in range(1, len(others) + 1)]
    end = time.monotonic() + START_SECONDS
    while not store.check(keys):
        ended = next((process.returncode for process in others if process.poll() is not None), None)
        if ended is not None or time.monotonic() > end:
            why = f"ended with exit code {ended}" if ended is not None else f"did not come in {START_SECONDS:g} s"
            raise WorkError(f"a process that was to share the network {why}; its own words are above, if it had any")
        time.sleep(_LOOK_SECONDS)


def _key(rank: int) -> str:
    return f"loaded {rank}"


def _watch(network: SharedNetwork, process: subprocess.Popen[bytes]) -> None:
    """What the first process would compute without one of the others would be wrong, and it would wait for it."""
    code = process.wait()
    if not network.is_closed:
        log.warn(f"process {process.pid}, which shared the network, ended with exit code {code}: this one ends, too")
        os._exit(LOST)


# The others


def main() -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first process decides
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    lifeline = threading.Thread(target=_end_with_input, daemon=True)
    lifeline.start()
    try:
        _work(order)
    except FastServeError:
        lifeline.join()  # the first process meets the same error, and says it
    except Exception:
        lifeline.join(_LAST_SECONDS)  # where the first process is gone, what happened here is no news
        raise
    os._exit(0)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def _work(order: Mapping[str, Any]) -> None:
    import torch
    from torch._C._distributed_c10d import TCPStore

    from fastserve.generation import parallel

    torch.set_num_threads(order["threads"])
    store = TCPStore("127.0.0.1", order["port"], timeout=timedelta(seconds=START_SECONDS))
    rank, processes = order["rank"], order["processes"]
    share = read_share(Bundle.load(order["folder"], verify=False), rank, processes, order["memory"])
    store.set(_key(rank), "")
    parallel.join(store, rank, processes)
    parallel.follow(share)


if __name__ == "__main__":
    main()
