"""Requests per second and latency of FastServe and its peers, serving the same weights, each on one core.

    python benchmarks/serve_classifier.py MODEL [--peer-python PYTHON] [--seconds 3] [--rounds 3]

MODEL is a name of the registry or a folder. The server has core 0 and the client core 1; servers take turns, one at a
time, and medians over the rounds are compared, since machines are noisy. Every server must first give the scores that
the model gives in this process. The peers live in a Python of their own, made by:

    python -m venv peers
    peers/bin/pip install torch fastapi uvicorn uvloop httptools litserve bentoml onnxruntime onnx onnxscript \
        rjieba pydantic pyyaml safetensors opencc-python-reimplemented tokenizers zstandard rich click
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.predictor import Predictor
from fastserve.bundle.runtimes.base import automatic
from fastserve.registry import Registry

SERVER_CORE, CLIENT_CORE = 0, 1
CONCURRENCY = (1, 16, 64)
START_SECONDS = 120.0
TOLERANCE = 1e-3
HERE = Path(__file__).resolve().parent
PEERS = {
    "fastapi-torch": "FastAPI + torch",
    "fastapi-onnx": "FastAPI + ONNX Runtime",
    "litserve": "LitServe + ONNX Runtime",
    "bentoml": "BentoML + ONNX Runtime",
}


@dataclass(frozen=True)
class Contestant:
    """A server: its command (PORT stands for the port), the path that it answers, and the runtime behind it."""

    name: str
    command: list[str]
    path: str
    runtime: str


@dataclass
class Result:
    """Figures of all rounds. Of each concurrency: requests/s, p50 and p99 in ms, requests a second of processor time.

    The last is what a core gives that is shared with nothing else."""

    start: list[float] = field(default_factory=list)
    figures: dict[int, list[tuple[float, ...]]] = field(default_factory=dict)

    def median(self, concurrency: int) -> tuple[float, ...]:
        return tuple(statistics.median(values) for values in zip(*self.figures[concurrency], strict=True))


# ---- the client


class Asker(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer."""

    def __init__(self, requests: Sequence[bytes], first: int, end: float, seconds: list[float]) -> None:
        self.requests, self.next, self.end, self.seconds = requests, first, end, seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.asked = time.perf_counter()
        if self.asked > self.end:
            self.transport.close()
            self.done.set_result(None)
            return
        self.next = (self.next + 1) % len(self.requests)
        self.transport.write(self.requests[self.next])

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not is_whole(self.buffer):
            return
        if not self.buffer.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self.buffer[:300].decode("latin-1")))
            self.transport.close()
            return
        self.buffer = b""
        self.seconds.append(time.perf_counter() - self.asked)
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("the server closed the connection"))


def is_whole(data: bytes) -> bool:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = data[:end].lower()
    start = head.find(b"content-length: ")
    if start < 0:
        return head.find(b"chunked") >= 0 and data.endswith(b"0\r\n\r\n")
    return len(data) >= end + 4 + int(head[start + 16 :].split(b"\r\n", 1)[0])


async def load(port: int, requests: Sequence[bytes], concurrency: int, seconds: float) -> list[float]:
    """The seconds of each answer."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    askers = []
    for number in range(concurrency):
        first = number * len(requests) // concurrency
        _, asker = await loop.create_connection(lambda: Asker(requests, first, end, found), "127.0.0.1", port)  # noqa: B023
        askers.append(asker)
    await asyncio.gather(*(asker.done for asker in askers))
    return found


def measure(port: int, session: int, requests: Sequence[bytes], concurrency: int, seconds: float) -> tuple[float, ...]:
    uvloop.run(load(port, requests, concurrency, seconds / 4))  # warm
    start, busy = time.perf_counter(), processor_seconds(session)
    found = sorted(uvloop.run(load(port, requests, concurrency, seconds)))
    rate = len(found) / (time.perf_counter() - start)
    of_processor = len(found) / max(processor_seconds(session) - busy, 1e-9)
    return rate, 1e3 * found[len(found) // 2], 1e3 * found[int(len(found) * 0.99)], of_processor


def processor_seconds(session: int) -> float:
    """What the processes of a session have used so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# ---- the servers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(contestant: Contestant, first: bytes, folder: Path) -> Iterator[tuple[int, int, float, bytes]]:
    """Start the server on its core: its port, session, seconds until its first answer, and that answer's body."""
    port = free_port()
    command = [word.replace("PORT", str(port)) if word == "PORT" else word for word in contestant.command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "DO_NOT_TRACK": "true"}
    environment["PYTHONPATH"] = str(HERE.parent / "src")
    start = time.perf_counter()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *command],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    try:
        body = first_answer(process, port, first, folder / "log")
        yield port, process.pid, time.perf_counter() - start, body
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def first_answer(process: subprocess.Popen[bytes], port: int, request: bytes, log: Path) -> bytes:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(request)
            data = b""
            while not is_whole(data) and (more := connection.recv(65536)):
                data += more
            if data.startswith(b"HTTP/1.1 200"):
                return body_of(data)
        time.sleep(0.01)
    raise RuntimeError("it did not start: " + log.read_text(errors="replace")[-400:])


def body_of(reply: bytes) -> bytes:
    head, _, body = reply.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return body
    parts, rest = b"", body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        parts, rest = parts + rest[:count], rest[count + 2 :]
    return parts


def make_request(path: str, text: str) -> bytes:
    body = orjson.dumps({"instances": [text]})
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def check(body: bytes, expected: dict[str, float]) -> None:
    content = orjson.loads(body)
    predictions = content["predictions"] if isinstance(content, dict) else content
    found = predictions[0]["scores"]
    worst = max(abs(found[label] - score) for label, score in expected.items())
    if worst > TOLERANCE:
        raise RuntimeError(f"its scores differ by {worst:.4f} from the model's own: these are not the same weights")


# ---- the race


def in_process(folder: Path, runtime: str, texts: Sequence[str], seconds: float) -> dict[int, float]:
    """Texts of the runtime alone per second of processor time, in batches of each size."""
    code = (
        "import json, sys, time\n"
        "from fastserve.bundle.bundle import Bundle\nfrom fastserve.bundle.predictor import Predictor\n"
        "folder, runtime, texts, seconds = sys.argv[1], sys.argv[2], json.load(sys.stdin), float(sys.argv[3])\n"
        "model = Predictor(Bundle.load(folder), runtime, threads=1).warm()\nfound = {}\n"
        "for size in (1, 8, 32, 64):\n"
        "    batches = [[texts[(i + j) % len(texts)] for j in range(size)] for i in range(0, len(texts), size)]\n"
        "    count, start, busy = 0, time.perf_counter(), time.process_time()\n"
        "    while time.perf_counter() - start < seconds:\n"
        "        model.scores(batches[(count // size) % len(batches)]); count += size\n"
        "    found[size] = count / (time.process_time() - busy)\n"
        "print(json.dumps(found))\n"
    )
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-c", code, str(folder), runtime, str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True, env=environment)
    return {int(size): rate for size, rate in json.loads(done.stdout).items()}


def contestants(folder: Path, runtime: str, options: argparse.Namespace, scratch: Path) -> list[Contestant]:
    ours = [sys.executable, "-m", "fastserve", "serve", f"m={folder}", "--port", "PORT", "--runtime", runtime]
    found = [Contestant("FastServe", ours, "/v1/models/m:predict", runtime)]
    python = options.peer_python
    if python is None:
        print("peers are skipped: no --peer-python")
        return found
    onnx = scratch / "model.onnx"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    exported = subprocess.run(
        [python, str(HERE / "serve_peers.py"), "export", str(folder), str(onnx)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if exported.returncode:
        print(f"the plain ONNX model was not written: {exported.stderr.strip().splitlines()[-1]}")
    for kind in options.peers.split(","):
        command = [python, str(HERE / "serve_peers.py"), kind, str(folder), "PORT", str(onnx)]
        has_form = Bundle.load(folder).manifest.runtimes.get("onnx") and not onnx.exists()
        runs = "onnx" if has_form and kind != "fastapi-torch" else "torch"
        found.append(Contestant(PEERS[kind], command, "/predict", runs))
    return found


def race(found: list[Contestant], texts: Sequence[str], folder: Path, options: argparse.Namespace) -> dict[str, Result]:
    expected = {
        runtime: Predictor(Bundle.load(folder), runtime, threads=1).predict([texts[0]])[0].scores
        for runtime in {contestant.runtime for contestant in found}
    }
    results: dict[str, Result] = {}
    failed: set[str] = set()
    for number in range(options.rounds):
        for contestant in found:
            if contestant.name in failed:
                continue
            requests = [make_request(contestant.path, text) for text in texts]
            result = results.setdefault(contestant.name, Result())
            try:
                with tempfile.TemporaryDirectory() as place, running(contestant, requests[0], Path(place)) as server:
                    port, session, started, body = server
                    check(body, expected[contestant.runtime])
                    result.start.append(started)
                    for concurrency in CONCURRENCY:
                        figures = measure(port, session, requests, concurrency, options.seconds)
                        result.figures.setdefault(concurrency, []).append(figures)
                    print(f"round {number + 1}: {contestant.name}, {figures[0]:,.0f} requests/s at {CONCURRENCY[-1]}")
            except (RuntimeError, OSError) as error:
                print(f"{contestant.name} is skipped: {error}")
                failed.add(contestant.name)
                results.pop(contestant.name, None)
    return results


def show(results: dict[str, Result], runtime: str, alone: dict[int, float]) -> None:
    ours = results.get("FastServe")
    heads = "".join(
        f" | {f'at {c}: req/s':>14s} {'p50 ms':>8s} {'p99 ms':>8s} {'/CPU s':>7s} {'ratio':>7s}" for c in CONCURRENCY
    )
    print(f"\n{'':26s}{'start s':>8s}{heads}")
    for name, result in results.items():
        line = f"{name:26s}{statistics.median(result.start):8.2f}"
        for concurrency in CONCURRENCY:
            rate, p50, p99, of_processor = result.median(concurrency)
            ratio = ours.median(concurrency)[0] / rate if ours else float("nan")
            line += f" | {rate:14,.0f} {p50:8.2f} {p99:8.2f} {of_processor:7,.0f} {ratio:6.1f}x"
        print(line)
    print(
        f"\n{runtime} in the process, no HTTP, texts per CPU second: "
        + ", ".join(f"batch {n}: {rate:,.0f}" for n, rate in alone.items())
    )
    for concurrency in CONCURRENCY if ours else ():
        _, p50, p99, rate = ours.median(concurrency)
        alike = alone[1] if concurrency == 1 else max(alone.values())
        print(f"FastServe at {concurrency}: {rate / alike:.0%} of that per CPU second (batch 1 for one at a time, else "
              f"the best); p99 / p50 = {p99 / p50:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--peer-python", help="the Python that has the peers")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--runtime", default="auto", help="FastServe's runtime")
    parser.add_argument("--texts", type=Path, help="one text a line; without it, the model's parity rows")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    folder = Registry().resolve(options.model).resolve()
    manifest = Bundle.load(folder).manifest
    texts = options.texts.read_text("utf-8").splitlines()[:1000] if options.texts else [r.text for r in manifest.parity]
    print(
        f"{manifest.network.name} in {folder}; {len(texts)} texts of {np.mean([len(t) for t in texts]):.0f} characters"
    )
    runtime = automatic(Bundle.load(folder)) if options.runtime == "auto" else options.runtime
    with tempfile.TemporaryDirectory() as scratch:
        results = race(contestants(folder, runtime, options, Path(scratch)), texts, folder, options)
    show(results, runtime, in_process(folder, runtime, texts, options.seconds / 2))


if __name__ == "__main__":
    main()
