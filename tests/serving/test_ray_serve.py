"""`fastserve serve --on ray`: Ray Serve has the servers, and the command's router stands before them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import Server, children

from fastserve.errors import ConfigError, MissingExtraError, NotFoundError
from fastserve.serving import ServeOptions, serve
from fastserve.serving.keys import Gate
from fastserve.serving.routing.router import Router
from fastserve.serving.serve import BUNDLES
from hosts import Host, Hosts
from ray_nodes import PORT, TOKEN, start_head, start_node

KEY = "a-key-that-nobody-guesses"
MEMBER = b"fastserve.serving.routing.member"
START_SECONDS = 180
"""A Ray takes some 10 s of processor time to start, each server 3 s more."""

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: the extra 'ray'")
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
"""Ray's own use of pydantic."""


# Without Ray


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, fastserve_home: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("fastserve.serving.routing.ray_serve", "fastserve.distributed.ray_cluster"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingExtraError, match=r"serving on 'ray' needs .*fastserve-lm\[ray\]"):
        serve(["sentiment"], ServeOptions(port=0, on="ray:10.0.0.1:6379"))


@pytest.mark.parametrize(
    ("on", "error", "said"),
    [("rai", NotFoundError, "did you mean 'ray'"), ("local:host1", ConfigError, "local takes no address")],
)
def test_a_wrong_place_is_said_before_any_work(on: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        serve(["sentiment"], ServeOptions(port=0, on=on))


def test_vllm_is_one_server() -> None:
    with pytest.raises(ConfigError, match="leave --replicas and --on out"):
        serve(["poet"], ServeOptions(port=0, engine="vllm", on="ray"))


def test_the_router_follows_servers_that_move(capsys: pytest.CaptureFixture[str]) -> None:
    router = Router([], Gate(()), events())
    assert not router.is_ready
    router.follow(["http://10.0.0.1:1", "http://10.0.0.2:1"])
    first, second = router.replicas
    first.is_ready = True
    router.affinity.note([b"block"], first.name)
    router.affinity.note([b"other"], second.name)
    router.follow(["http://10.0.0.3:1", "http://10.0.0.2:1"])
    assert [replica.name for replica in router.replicas] == ["http://10.0.0.3:1", "http://10.0.0.2:1"]
    assert router.replicas[1] is second, "what is known of a server that stays is kept"
    assert router.affinity.choose([b"other"], router.replicas) is second
    assert router.affinity.choose([b"block"], router.replicas) is router.replicas[0], "nobody has read it now"
    assert not router.is_ready
    assert json.loads(capsys.readouterr().err)["server"] == "http://10.0.0.1:1"


def events() -> Any:
    from fastserve.serving.events import Events

    return Events(level="info")


# With Ray


@needs_ray
@pytest.mark.parametrize(
    ("cores", "replicas", "each"),
    [([2], 2, 1), ([8, 8], 2, 8), ([8, 8], 3, 4), ([16, 4], 3, 5), ([2], 3, 1), ([], 1, 1), ([0, 6], 1, 6)],
)
def test_auto_is_the_most_cpus_that_all_replicas_can_have(cores: list[int], replicas: int, each: int) -> None:
    from fastserve.serving.routing.ray_serve import share

    assert share(cores, replicas) == each


@needs_ray
def test_a_server_takes_its_threads_and_a_gpu_where_there_is_one_for_each(caplog: pytest.LogCaptureFixture) -> None:
    from fastserve.serving.routing.ray_serve import Room, room_for

    two = ServeOptions(replicas=2, workers=2)
    assert room_for(two, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}]) == Room(cpus=4, gpus=1, threads=2)
    assert room_for(two, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}]) == Room(cpus=8, gpus=0, threads=4)
    assert not caplog.records
    asked = two.model_copy(update={"engine_threads": 6})
    assert room_for(asked, [{"CPU": 8.0}]) == Room(cpus=12, gpus=0, threads=6)
    assert "too few for 2 servers of 12 each" in caplog.text


@needs_ray
def test_the_error_of_a_start_is_read_out_of_its_traceback() -> None:
    from fastserve.serving.routing.ray_serve import _error_in

    told = "It failed. Error:\n  File x\nfastserve.errors.NotFoundError: no model is called 'x'\n\n"
    assert type(_error_in(told)) is NotFoundError
    assert str(_error_in(told)) == "no model is called 'x'"
    assert str(_error_in("it\nended  \n")) == "ended"


@needs_ray
def test_servers_on_a_cluster_need_keys(fastserve_home: Path) -> None:
    """Their machines' addresses are open to others, whatever the router's own is."""
    with pytest.raises(ConfigError, match="give --api-key-file FILE"):
        serve(["sentiment"], ServeOptions(port=0, on="ray:10.0.0.1:6379"))


@needs_ray
def test_a_wrong_address_is_said_in_a_line(fastserve_home: Path, make_writer: Callable[..., Path]) -> None:
    make_writer("poet")
    said = command("serve", "poet", "--on", "ray:127.0.0.1:1", "--insecure", "--port", "0", code=1)
    assert said[-1].startswith("error: no Ray at '127.0.0.1:1': ")
    assert "ray start --address=HOST:PORT" in said[-1]
    assert len([line for line in said if line.startswith("error")]) == 1
    assert not any("Traceback" in line for line in said)


def command(*words: str, code: int) -> list[str]:
    """What `fastserve WORDS` says that ends with `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "fastserve", *words], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stderr.splitlines()


@needs_ray
@pytest.mark.heavy
def test_a_model_that_cannot_be_served_ends_the_whole_with_its_reason(fastserve_home: Path) -> None:
    said = command("serve", "nothing", "--replicas", "2", "--on", "ray", "--port", "0", code=2)
    assert said[-1].startswith("error: "), said
    assert "no model is called 'nothing'" in said[-1]
    assert not any("Traceback" in line for line in said)


@pytest.fixture(scope="module")
def poet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_real_writers import make

    return make(tmp_path_factory.mktemp("poet")).folder


class OnRay(Server):
    """A command with two replicas of the poet, at a port that is known from the start."""

    def __init__(self, *models: str, **options: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        words = {"replicas": 2, "on": "ray", "port": self.port, "drain_seconds": 3, "engine_threads": 1, **options}
        super().__init__(*models, source=BUNDLES, **words)

    def figures(self, metric: str) -> dict[str, float]:
        """That figure of the router's, by the servers' addresses."""
        try:
            text = httpx.get(f"{self.url}/metrics", timeout=5).text
        except httpx.HTTPError:
            return {}
        found = re.findall(rf'^fastserve_router_{metric}\{{server="(.*)"\}} (.*)$', text, re.MULTILINE)
        return {server: float(value) for server, value in found}

    def until_ready(self, count: int = 2, but: str = "") -> None:
        """Until so many servers are ready, none of them `but`."""

        def ready() -> bool:
            servers = {server for server, is_ready in self.figures("ready").items() if is_ready}
            return len(servers) == count and but not in servers

        self.until(ready, START_SECONDS)

    def complete(self, prompt: str, **fields: Any) -> httpx.Response:
        ask = {"model": "poet", "prompt": prompt, "max_tokens": 24, "temperature": 0, **fields}
        return httpx.post(f"{self.url}/v1/completions", json=ask, timeout=60)

    def members(self) -> dict[str, int]:
        """Process ids of the servers, by their addresses."""
        return {f"http://{listens(pid)}": pid for pid in below(self.process.pid) if is_member(pid)}


def below(of: int) -> list[int]:
    """All that a process has started, and those that they have."""
    found = children(of)
    return [*found, *(one for child in found for one in below(child))]


def is_member(pid: int) -> bool:
    try:
        return MEMBER in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def listens(pid: int) -> str:
    """HOST:PORT at which a process listens."""
    for line in subprocess.check_output(["ss", "-Hltnp"], text=True).splitlines():
        if f"pid={pid}," in line:
            return line.split()[3]
    return ""


def alive(processes: list[int]) -> list[str]:
    """Commands of those that still run."""
    found = []
    for pid in processes:
        with suppress(OSError):
            found += [Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").replace("\0", " ")]
    return [words for words in found if words]  # a zombie has none


@pytest.fixture
def on_ray(poet: Path) -> Iterator[OnRay]:
    server = OnRay(f"poet={poet}")
    try:
        server.until_ready()
        yield server
        server.stop()
    finally:
        server.close()


@needs_ray
@pytest.mark.heavy
def test_two_replicas_answer_as_one_server_and_are_replaced(
    on_ray: OnRay, poet: Path, launch: Callable[..., Server]
) -> None:
    plain = launch(f"poet={poet}", source=BUNDLES, engine_threads=1).ready()
    prompts = ["床前明月光", "the cat sat", "many"]
    for prompt in prompts:
        ask = {"model": "poet", "prompt": prompt, "max_tokens": 24, "temperature": 0}
        expected = httpx.post(f"{plain.url}/v1/completions", json=ask, timeout=60).json()["choices"][0]["text"]
        assert on_ray.complete(prompt).json()["choices"][0]["text"] == expected
        streamed = on_ray.complete(prompt, stream=True)
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert "".join(texts(streamed)) == expected
    assert plain.stop() == 0

    # the same beginning goes to the server that has read it, however the others are
    before = on_ray.figures("answers_total")
    for number in range(6):
        assert on_ray.complete("the cat sat on the mat " * 12 + str(number), max_tokens=2).status_code == 200
    grown = {server: count - before[server] for server, count in on_ray.figures("answers_total").items()}
    assert sorted(grown.values()) == [0, 6]
    reader = max(grown, key=lambda server: grown[server])

    # that server is killed while it answers
    outcomes: list[Any] = []
    threads = [threading.Thread(target=ask_long, args=(on_ray, outcomes, stream)) for stream in (False, True)]
    for thread in threads:
        thread.start()
    on_ray.until(lambda: sum(on_ray.figures("open_requests").values()) > 0)
    os.kill(on_ray.members()[reader], signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    assert all(outcome in ("whole", "error") for outcome in outcomes), outcomes
    assert len(outcomes) == 2
    assert on_ray.complete("many").status_code == 200, "the other one answers meanwhile"
    on_ray.until_ready(but=reader)
    assert reader not in on_ray.figures("ready")
    for prompt in prompts * 2:
        assert on_ray.complete(prompt).status_code == 200


def texts(streamed: httpx.Response) -> Iterator[str]:
    for line in streamed.text.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])["choices"][0]["text"]


def ask_long(server: OnRay, outcomes: list[Any], stream: bool) -> None:
    try:
        found = server.complete("the cat", max_tokens=100, n=8, temperature=1, stream=stream)
    except httpx.HTTPError as error:
        outcomes.append(error)
        return
    if found.status_code == 200:
        outcomes.append("error" if '"error"' in found.text else "whole")
    else:
        outcomes.append("error" if found.status_code >= 500 else found.status_code)


@needs_ray
@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_of_it(on_ray: OnRay, number: signal.Signals) -> None:
    processes = below(on_ray.process.pid)
    assert len(on_ray.members()) == 2
    on_ray.process.send_signal(number)
    assert on_ray.process.wait(30) == 0
    on_ray.until(lambda: not alive(processes))
    assert not any("Traceback" in line or "***" in line for line in on_ray.lines)


@needs_ray
@pytest.mark.heavy
def test_the_servers_end_with_their_command(on_ray: OnRay) -> None:
    servers = [pid for member in on_ray.members().values() for pid in (member, *below(member))]
    assert len(servers) >= 6, "each has a supervisor, a worker and an engine"
    on_ray.process.kill()
    on_ray.process.wait(10)
    on_ray.until(lambda: not alive(servers), 20)


class OnCluster:
    """A command on the first of two hosts that are a Ray cluster, and its address as seen from there."""

    def __init__(self, hosts: Hosts, folder: Path, *models: str) -> None:
        self.host, self.folder = hosts[0], folder
        self.address = f"http://{self.host.address}:9000"
        words = [*models, "--replicas", "2", "--engine-threads", "1", "--on", f"ray:{self.host.address}:{PORT}"]
        words += ["--api-key-file", str(folder / "keys"), "--host", self.host.address, "--port", "9000"]
        with open(folder / "said", "w", encoding="utf-8") as said:
            command = [sys.executable, "-m", "fastserve", "serve", *words]
            self.process = self.host.popen(command, env=TOKEN, stderr=said, cwd="/")

    def curl(self, address: str, *words: str) -> str:
        return self.host.run(["curl", "-s", "--max-time", "30", *words, address]).stdout

    def with_key(self, path: str, *words: str) -> str:
        return self.curl(f"{self.address}{path}", "-H", f"Authorization: Bearer {KEY}", *words)

    def text(self) -> str:
        ask = {"model": "poet", "prompt": "the cat", "max_tokens": 8, "temperature": 0}
        return str(json.loads(self.with_key("/v1/completions", "-d", json.dumps(ask)))["choices"][0]["text"])

    def ready(self) -> list[str]:
        """Addresses of the servers that are ready, in order."""
        return sorted(
            re.findall(r'^fastserve_router_ready\{server="(.*)"\} 1$', self.with_key("/metrics"), re.MULTILINE)
        )

    def until(self, condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it did not happen in {seconds} s; the log:\n{self.said()}"
            time.sleep(0.2)

    def said(self) -> str:
        return (self.folder / "said").read_text("utf-8")


@needs_ray
@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_a_cluster_that_loses_a_machine_goes_on(make_hosts: Callable[..., Hosts], tmp_path: Path, poet: Path) -> None:
    hosts = make_hosts(2)
    env = {"FASTSERVE_HOME": str(tmp_path)}
    head = start_head(hosts[0], folder=tmp_path, env=env)
    start_node(hosts[1], f"--address={head}", folder=tmp_path, env=env)
    (tmp_path / "keys").write_text(f"{KEY}\n")

    lacking = OnCluster(hosts, tmp_path, "poet=./nowhere")
    assert lacking.process.wait(120) == 2
    assert re.match(r"error: on host[01]: .*nowhere.*storage that all of them share", lacking.said().splitlines()[-1])

    command = OnCluster(hosts, tmp_path, f"poet={poet}")
    command.until(lambda: len(command.ready()) == 2)
    first, second = command.ready()
    assert first.startswith(f"http://{hosts[0].address}:")
    assert second.startswith(f"http://{hosts[1].address}:")
    assert command.text() == command.text()
    assert "an API key is needed" in command.curl(f"{second}/v1/models"), "a server asks for the keys, too"

    hosts[1].end()
    assert command.text(), "the other one answers"
    command.until(lambda: second not in command.ready())
    command.until(lambda: len(command.ready()) == 2)
    assert all(server.startswith(f"http://{hosts[0].address}:") for server in command.ready())
    assert first in command.ready()
    command.process.terminate()
    assert command.process.wait(60) == 0
    command.until(lambda: not members_on(hosts[0]), 10)

    killed = OnCluster(hosts, tmp_path, f"poet={poet}")
    killed.until(lambda: len(killed.ready()) == 2)
    killed.process.kill()
    assert members_on(hosts[0])
    killed.until(lambda: not members_on(hosts[0]), 90)


def members_on(host: Host) -> list[int]:
    return [pid for pid in host.processes() if is_member(pid)]
