"""A language model that several processes share, over HTTP: the same texts, each its share, and killed under load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import Server, children
from streaming import figure, is_empty, until
from test_engine_process import Askers, engines
from test_real_writers import GREEDY, TEXTS, make, make_adapter

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.writer import Writer
from fastserve.errors import BundleError, ConfigError
from fastserve.generation.reference import generate
from fastserve.generation.sampling import Sampling
from fastserve.serving.serve import BUNDLES

SHARED = {"precision": "float32", "tensor_parallel": 2, "profile_seconds": 0.1}
MANY = {"max_tokens": 60, "temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def poet(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("poet"))


def start(
    launch: Callable[..., Server], bundle: Bundle, *, writing: dict[str, Any] | None = None, **options: Any
) -> Server:
    words = {**SHARED, **(writing or {})}
    return launch(f"poet={bundle.folder}", source=BUNDLES, engine_threads=2, writing=words, **options).ready()


def sharers(of: int) -> list[int]:
    """Process ids of those that share the network with the engine `of`."""
    return children(of, b"fastserve.bundle.shares")


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def plain(writer: Writer, prompt: str, **settings: Any) -> str:
    """What the plain loop writes with the whole network."""
    sampling = Sampling(**{"temperature": 0, "max_tokens": 24, **settings})
    pipeline = writer.pipeline
    ids = pipeline.go_on(prompt).tolist()
    return generate(writer.network, [ids], sampling, eos=pipeline.ends, tokenizer=pipeline.tokenizer)[0].text


def complete(url: str, prompt: str, **fields: Any) -> str:
    ask = {"model": "poet", "prompt": prompt, "max_tokens": 24, "temperature": 0, **fields}
    text: str = (
        httpx.post(f"{url}/v1/completions", json=ask, timeout=60).raise_for_status().json()["choices"][0]["text"]
    )
    return text


def test_two_processes_serve_what_one_writes_with_half_of_the_weights_each(
    poet: Bundle, launch: Callable[..., Server], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from fastserve.models.lora import load_adapter

    folder = make_adapter(poet, tmp_path / "rhymer", 0)
    server = start(launch, poet, writing={"slots": 3}, adapters=f"rhymer={folder}")
    (engine,) = engines(server.workers()[0])
    assert len(sharers(engine)) == 1
    writer = Writer(poet)
    whole = {name: weight.nbytes for name, weight in writer.network.named_parameters()}
    told = httpx.get(f"{server.url}/v2/models/poet").json()["parameters"]
    split = sum(size for name, size in whole.items() if "_proj" in name)
    assert told["weight_bytes"] == [sum(whole.values()) - split // 2] * 2
    prompts = [f"{text} {number}" for number, text in enumerate(TEXTS * 4)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        asked = {place: pool.submit(complete, server.url, prompts[place], **MANY) for place in range(12)}
        for place, text in asked.items():
            assert text.result() == plain(writer, prompts[place], **MANY)
    load_adapter(writer.network, folder)  # type: ignore[arg-type]
    assert complete(server.url, "the cat", model="rhymer") == plain(writer, "the cat")
    until(lambda: is_empty(server.url))
    assert server.stop() == 0
    until(lambda: all(map(is_gone, [engine, *sharers(engine)])))


def test_whoever_is_killed_everyone_is_answered_and_the_server_recovers(
    poet: Bundle, launch: Callable[..., Server]
) -> None:
    server = start(launch, poet)
    worker = server.workers()[0]
    with Askers(server.url, 4, max_tokens=100) as askers:
        for victim in ("one that shares", "the engine"):
            until(lambda: figure(server.url, "vllm:num_requests_running") > 0)
            (engine,) = engines(worker)
            (other,) = sharers(engine)
            os.kill(other if victim == "one that shares" else engine, signal.SIGKILL)
            server.wait_for("engine ready again", 60)
            until(lambda: is_gone(engine) and is_gone(other))  # noqa: B023
            done = askers.outcomes["200"]
            until(lambda: askers.outcomes["200"] > done + 4)  # noqa: B023
    assert set(askers.outcomes) <= {"200", "500", "503", "error event"}
    assert askers.outcomes["500"] + askers.outcomes["error event"] > 0
    (idle,) = sharers(engines(worker)[0])
    until(lambda: is_empty(server.url))
    os.kill(idle, signal.SIGKILL)
    assert "one of the processes that share its network" in server.wait_for("engine ended")["reason"]
    server.wait_for("engine ready again", 60)
    assert figure(server.url, "fastserve_engine_restarts_total") == 3
    assert complete(server.url, "the cat") == plain(Writer(poet), "the cat")
    (engine,) = engines(worker)
    left = [engine, *sharers(engine)]
    server.process.kill()
    until(lambda: all(map(is_gone, left)))


def test_a_terminal_and_an_evaluation_share_a_network_too(poet: Bundle, tmp_path: Path) -> None:
    from fastserve import api

    def run(*words: str, given: str = "") -> str:
        words = (sys.executable, "-m", "fastserve", *words, "--tensor-parallel", "2")
        return subprocess.run(words, input=given, capture_output=True, text=True, timeout=100, check=True).stdout

    said = run("chat", str(poet.folder), "temperature=0", "max_tokens=24", given="the cat\n\n")
    assert said == Writer(poet).write(["the cat"], GREEDY)[0].text + "\n"
    data = tmp_path / "data.jsonl"
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]} for text in TEXTS]
    data.write_text("\n".join(map(json.dumps, rows)))
    alone = api.load(poet.folder).evaluate(data).to_json()
    shared = json.loads(run("evaluate", str(poet.folder), "--data", str(data), "--json").splitlines()[-1])
    assert shared["metrics"].keys() == alone["metrics"].keys()
    for name, metric in alone["metrics"].items():
        assert shared["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-4), name


def test_what_cannot_be_shared_is_refused(poet: Bundle, tmp_path: Path, launch: Callable[..., Server]) -> None:
    with pytest.raises(ConfigError, match="key_value_heads = 2 cannot be split among 3 processes"):
        _ = Writer(poet, tensor_parallel=3).network
    (tmp_path / "kept").mkdir()
    kept = make(tmp_path / "kept")
    (kept.folder / "adapter").mkdir()
    with pytest.raises(ConfigError, match="keeps a LoRA adapter apart"):
        _ = Writer(kept, tensor_parallel=2).network
    manifest = poet.manifest.model_copy(
        update={
            "network": poet.manifest.network.model_copy(
                update={"options": {**poet.manifest.network.options, "dim": 64}}
            )
        }
    )
    with pytest.raises(BundleError, match="the weights do not fit the network"):
        _ = Writer(Bundle(poet.folder, manifest), tensor_parallel=2).network
    server = launch(f"poet={poet.folder}", source=BUNDLES, writing={"tensor_parallel": 3})
    assert "cannot be split among 3 processes" in server.wait_for("error", 60)["message"]
    assert server.process.wait(10) == 2


def test_other_networks_are_refused_by_name(poet: Bundle, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}')
    spec = poet.manifest.network.model_copy(update={"name": "./gpt2"})
    other = Bundle(tmp_path, poet.manifest.model_copy(update={"network": spec}))
    with pytest.raises(ConfigError, match="cannot be split; those that can are decoder-15m, decoder-125m, decoder-1b"):
        _ = Writer(other, tensor_parallel=2).network
