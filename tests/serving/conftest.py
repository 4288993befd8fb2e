"""Fake models in a folder of the test's own, and servers that answer with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import Server

from fastserve.serving.fake import FakeSource
from fastserve.serving.inprocess import running
from fastserve.serving.model import Named
from fastserve.serving.node import Node
from fastserve.serving.options import ServeOptions


class Running:
    """A server in this process, with a client for it."""

    def __init__(self, url: str, node: Node, client: httpx.Client) -> None:
        self.url, self.node, self.client = url, node, client

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def predict(self, *texts: str, model: str = "sentiment") -> httpx.Response:
        return self.client.post(f"/v1/models/{model}:predict", json={"instances": list(texts)})


@pytest.fixture
def make_model(fastserve_home: Path) -> Callable[..., Path]:
    """make_model(name, version, **settings) writes a fake model and makes it the latest and production."""

    def make(name: str = "sentiment", version: int = 1, *, promote: bool = True, **settings: Any) -> Path:
        folder = fastserve_home / "models" / name / str(version)
        folder.mkdir(parents=True)
        (folder / "fake.json").write_text(json.dumps(settings))
        if promote:
            move_alias(fastserve_home, name, version)
        return folder

    return make


@pytest.fixture
def make_writer(fastserve_home: Path) -> Callable[..., Path]:
    """make_writer(name, version, **settings) writes a fake model that writes, and makes it the latest."""

    def make(name: str = "poet", version: int = 1, **settings: Any) -> Path:
        folder = fastserve_home / "models" / name / str(version)
        folder.mkdir(parents=True)
        (folder / "fake_writer.json").write_text(json.dumps(settings))
        move_alias(fastserve_home, name, version)
        return folder

    return make


def move_alias(home: Path, name: str, version: int) -> None:
    aliases = home / "models" / name / "aliases.json"
    temporary = aliases.with_suffix(".new")
    temporary.write_text(json.dumps({"latest": version, "production": version}))
    temporary.rename(aliases)


@pytest.fixture
def serve(make_model: Callable[..., Path]) -> Iterator[Callable[..., Running]]:
    """serve(*names, settings={...}, **options): a running server; one model `sentiment` is made where none is named."""
    with ExitStack() as stack:

        def start(*names: str, settings: dict[str, Any] | None = None, **options: Any) -> Running:
            if not names:
                make_model("sentiment", **(settings or {}))
                names = ("sentiment",)
            chosen = ServeOptions(port=0, log_level="error", **options)
            models = [Named(name.partition("@")[0], name) for name in names]
            url, node = stack.enter_context(running(models, chosen, FakeSource(chosen)))
            client = stack.enter_context(httpx.Client(base_url=url, timeout=10))
            return Running(url, node, client)

        yield start


@pytest.fixture
def write(serve: Callable[..., Running], make_writer: Callable[..., Path]) -> Callable[..., Running]:
    """write(settings={...}, **options): a running server of `poet`, a fake model that writes."""

    def start(settings: dict[str, Any] | None = None, **options: Any) -> Running:
        make_writer("poet", **(settings or {}))
        return serve("poet", **options)

    return start


@pytest.fixture
def launch(make_model: Callable[..., Path]) -> Iterator[Callable[..., Server]]:
    """launch(*models, settings={...}, **options): a server in processes; `sentiment` is made where none is named."""
    with ExitStack() as stack:

        def start(*models: str, settings: dict[str, Any] | None = None, **options: Any) -> Server:
            if not models:
                make_model("sentiment", **(settings or {}))
                models = ("sentiment@production",)
            server = Server(*models, **options)
            stack.callback(server.close)
            return server

        yield start
