"""A real network behind the real engine: what comes over HTTP is what the plain loop writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from servers import Server
from streaming import figure, is_empty, until

from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import NetworkSpec, ParityRow
from fastserve.bundle.writer import Writer
from fastserve.generation.orders import EngineOptions
from fastserve.generation.sampling import Sampling
from fastserve.models import NetworkShape, build
from fastserve.serving.bundles import BundleSource
from fastserve.serving.inprocess import running
from fastserve.serving.model import Named
from fastserve.serving.options import ServeOptions
from fastserve.serving.serve import BUNDLES
from fastserve.text.language_tokenizer import LanguageTokenizer
from fastserve.text.writing_pipeline import WritingPipeline

TEXTS = ["床前明月光，疑是地上霜。", "the cat sat on the mat", "many many many"]
FULL = EngineOptions(precision="float32")
GREEDY = Sampling(temperature=0, max_tokens=24)


def make(folder: Path, *, seed: int = 0, kind: Any = "conversation", spoil: float = 0.0) -> Bundle:
    """Random weights, large enough that the next token is no near tie. spoil: how far its kept rows are off."""
    tokenizer = LanguageTokenizer.train(TEXTS * 4, size=320).for_chats()
    pipeline = WritingPipeline(tokenizer, kind)
    vocabulary = tokenizer.vocabulary_size
    shape = {"vocabulary": {"tokens": vocabulary}, "outputs": vocabulary}
    options = {"layers": 2, "dim": 32, "heads": 4, "key_value_heads": 2, "context": 128, "feedforward": 64}
    torch.manual_seed(seed)
    network = build("decoder-15m", options, NetworkShape({"tokens": vocabulary}, vocabulary), causal=True)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(5 if "embed" not in name else 25)
    words: dict[str, Any] = {
        "task": "generation",
        "labels": (),
        "network": NetworkSpec(name="decoder-15m", options=options, shape=shape),
        "pipeline": pipeline,
        "weights": network.state_dict(),
    }
    first = save_bundle(folder / "first", **words)
    nats = Writer(first).nats(TEXTS) + spoil
    rows = [ParityRow(text=text, scores=(float(value),)) for text, value in zip(TEXTS, nats, strict=True)]
    return save_bundle(folder / "model", parity=rows, **words)


@pytest.fixture(scope="session")
def poet(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("poet"))


@pytest.fixture(scope="module")
def server(poet: Bundle) -> Iterator[httpx.Client]:
    options = ServeOptions(port=0, log_level="error", engine_threads=1, writing=FULL)
    with (
        running([Named("poet", str(poet.folder))], options, BundleSource(options)) as (url, _),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def complete(client: httpx.Client, prompt: Any, **fields: Any) -> Any:
    ask = {"model": "poet", "prompt": prompt, "max_tokens": 24, "temperature": 0, **fields}
    return client.post("/v1/completions", json=ask).raise_for_status().json()


def test_greedy_texts_are_those_of_the_plain_loop(server: httpx.Client, poet: Bundle) -> None:
    from fastserve.generation.reference import generate

    writer = Writer(poet)
    ids = [writer.pipeline.go_on(text).tolist() for text in TEXTS]
    expected = generate(writer.network, ids, GREEDY, eos=writer.pipeline.ends, tokenizer=writer.pipeline.tokenizer)
    found = complete(server, TEXTS)["choices"]
    assert [choice["text"] for choice in found] == [one.text for one in expected]
    assert [choice["finish_reason"] for choice in found] == [one.finish_reason for one in expected]
    told = complete(server, ids, logprobs=3)["choices"]
    for choice, one in zip(told, expected, strict=True):
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(one.logprobs, abs=1e-3)


def test_a_conversation_is_asked_as_the_writer_asks_it(server: httpx.Client, poet: Bundle) -> None:
    from fastserve.types import Message

    said = [Message("system", "be brief"), Message("user", "the cat")]
    expected = Writer(poet).write([said], GREEDY)[0].text
    messages = [{"role": message.role, "content": message.content} for message in said]
    ask = {"model": "poet", "messages": messages, "max_tokens": 24, "temperature": 0}
    answer = server.post("/v1/chat/completions", json=ask).raise_for_status().json()
    assert answer["choices"][0]["message"]["content"] == expected


def test_a_seed_says_the_same_whatever_stands_beside_it(server: httpx.Client) -> None:
    alone = complete(server, "the cat", seed=7, temperature=2)["choices"][0]["text"]
    crowd = complete(server, ["床前", "the cat", "many"], seed=7, temperature=2, n=3)["choices"]
    assert crowd[3]["text"] == alone
    assert len({choice["text"] for choice in crowd[3:6]}) == 3


def test_a_prompt_that_was_read_before_is_remembered(server: httpx.Client) -> None:
    prompt = "a prompt that is longer than some blocks of the cache, so that they can be found again"
    complete(server, prompt)
    usage = complete(server, prompt)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 16


def test_nothing_is_left_behind(server: httpx.Client) -> None:
    for _ in range(3):
        complete(server, ["a", "b"], n=2, temperature=1, max_tokens=5)
    until(lambda: is_empty(str(server.base_url).rstrip("/")))


def make_adapter(bundle: Bundle, folder: Path, seed: int) -> Path:
    """A LoRA adapter that changes much."""
    from fastserve.models.lora import LoraOptions, adapter_weights, add_adapters, save_adapter

    network: Any = Writer(bundle).network
    add_adapters(network, LoraOptions(rank=2, alpha=3.0))
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_weights(network).values():
            tensor.normal_(std=0.3)
    save_adapter(network, folder)
    return folder


def test_adapters_are_asked_for_by_their_names(poet: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from fastserve.models.lora import load_adapter

    folders = {name: make_adapter(poet, tmp_path / name, seed) for seed, name in enumerate(("rhymer", "joker"))}
    words = ",".join(f"{name}={folder}" for name, folder in folders.items())
    options = ServeOptions(port=0, log_level="error", engine_threads=1, writing=FULL, adapters=words)
    expected = {"poet": Writer(poet).write(["many"], GREEDY)[0].text}
    for name, folder in folders.items():
        writer = Writer(poet)
        load_adapter(writer.network, folder)  # type: ignore[arg-type]
        expected[name] = writer.write(["many"], GREEDY)[0].text
    assert len(set(expected.values())) == 3
    with (
        running([Named("poet", str(poet.folder))], options, BundleSource(options)) as (url, _),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        messages = [{"role": "user", "content": "many"}]
        for name, text in expected.items():
            ask = {"model": name, "messages": messages, "max_tokens": 24, "temperature": 0}
            answer = client.post("/v1/chat/completions", json=ask).raise_for_status().json()
            assert (answer["model"], answer["choices"][0]["message"]["content"]) == (name, text)
        models = client.get("/v1/models").json()["data"]
        assert [(model["id"], model.get("parent")) for model in models] == [
            ("poet", None),
            ("rhymer", "poet"),
            ("joker", "poet"),
        ]


def test_a_form_is_kept(server: httpx.Client) -> None:
    pytest.importorskip("llguidance")
    ask = {"model": "poet", "prompt": "a", "max_tokens": 40, "temperature": 0}
    chosen = server.post("/v1/completions", json={**ask, "structured_outputs": {"choice": ["yes", "no"]}}).json()
    assert chosen["choices"][0]["text"] in ("yes", "no")
    assert chosen["choices"][0]["finish_reason"] == "stop"
    schema = {
        "type": "object",
        "properties": {"n": {"type": "boolean"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    found = server.post("/v1/completions", json={**ask, "response_format": wanted}).json()["choices"][0]
    assert found["finish_reason"] == "length" or set(json.loads(found["text"])) == {"n"}
    faulty = server.post("/v1/completions", json={**ask, "structured_outputs": {"regex": "("}})
    assert faulty.status_code == 400


def test_a_killed_engine_comes_back_and_the_command_ends_in_order(poet: Bundle, launch: Callable[..., Server]) -> None:
    from test_engine_process import Askers, engines

    server = launch(f"poet={poet.folder}", source=BUNDLES, engine_threads=1).ready()
    worker = server.workers()[0]
    assert "libtorch" not in Path(f"/proc/{worker}/maps").read_text(), "a worker that serves texts needs no torch"
    with Askers(server.url, 4, max_tokens=100) as askers:
        until(lambda: askers.outcomes["200"] > 0)
        os.kill(engines(worker)[0], signal.SIGKILL)
        server.wait_for("engine ready again", 60)
        done = askers.outcomes["200"]
        until(lambda: askers.outcomes["200"] > done + 4)
    assert set(askers.outcomes) <= {"200", "500", "503", "error event"}
    assert figure(server.url, "fastserve_engine_restarts_total") == 1
    assert server.stop() == 0


def test_a_model_that_is_not_what_was_evaluated_does_not_serve(tmp_path: Path, launch: Callable[..., Server]) -> None:
    server = launch(f"poet={make(tmp_path, spoil=0.5).folder}", source=BUNDLES, engine_threads=1)
    assert "nats a token, evaluation gave" in server.wait_for("error", 60)["message"]
    assert server.process.wait(10) == 1


def test_chat_in_a_terminal_goes_through_the_engine(poet: Bundle) -> None:
    writer = Writer(poet)
    streamed = "".join(output.text for output in writer.stream("the cat", GREEDY))
    assert streamed == writer.write(["the cat"], GREEDY)[0].text
    command = [sys.executable, "-m", "fastserve", "chat", str(poet.folder), "temperature=0", "max_tokens=24"]
    said = subprocess.run(command, input="the cat\n\n", capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == streamed + "\n"


def test_vllm_is_told_the_folder_or_that_it_is_not_there(poet: Bundle) -> None:
    from fastserve.errors import ConfigError, UserError
    from fastserve.serving.vllm import run_vllm, vllm_command

    named = [Named("poet", str(poet.folder))]
    options = ServeOptions(engine="vllm", port=9)
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        vllm_command(named, options)
    with pytest.raises(ConfigError, match="one model"):
        vllm_command(named * 2, options)
    with pytest.raises(UserError):
        run_vllm(named, options)
