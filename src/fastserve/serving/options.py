"""What a person may say about a server. Every limit has a default that is safe for an open port."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import Field

from fastserve.config import Auto, Positive, Section
from fastserve.generation.orders import EngineOptions

Seconds = Annotated[float, Field(gt=0)]


class HttpOptions(Section):
    """Where a server listens, who may ask, and what it takes from a connection."""

    host: str = Field("127.0.0.1", description="address to listen on; any other than loopback needs a key file")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="0 takes a free one and prints it")
    insecure: bool = Field(False, description="listen on a public address without API keys")
    api_key_file: str | None = Field(
        None, description="a file with one `KEY` or `NAME:KEY` a line; requests then need one of them"
    )
    requests_per_second: Annotated[float, Field(gt=0)] | None = Field(
        None, description="what each key may ask on average; over it the answer is 429"
    )
    burst: Positive = Field(20, description="requests that a key may ask at once before its rate counts")

    max_header_bytes: Positive = Field(32 << 10, description="longest request line and headers together")
    max_body_bytes: Positive = Field(8 << 20, description="longest request body; over it the answer is 413")
    max_unread_bytes: Positive = Field(
        1 << 20, description="bytes of a streamed answer that may wait for a client; one that takes less is cut off"
    )
    max_connections: Positive = Field(4096, description="open connections of one worker; more wait to be accepted")

    header_seconds: Seconds = Field(10.0, description="time in which the headers of a request must arrive")
    body_seconds: Seconds = Field(30.0, description="time in which the body of a request must arrive")
    idle_seconds: Seconds = Field(75.0, description="time that a connection may rest between two requests")
    write_seconds: Seconds = Field(30.0, description="time in which a client must take its answer")
    drain_seconds: Seconds = Field(30.0, description="time to finish accepted requests after SIGTERM")

    log_level: Literal["info", "warning", "error"] = "info"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


class ServeOptions(HttpOptions):
    """What `fastserve serve` computes with, what it refuses, and how it looks after its workers."""

    replicas: Positive = Field(
        1,
        description="servers of the same models behind one address, each with its workers; a prompt goes to the one "
        "that read its beginning before",
    )
    on: str = Field(
        "local",
        min_length=1,
        description="who has the replicas: local (this machine), ray (a Ray of its own; that of $RAY_ADDRESS where "
        "this is set), or ray:ADDRESS (a Ray cluster that this machine is part of)",
    )
    workers: Positive = Field(1, description="worker processes; one for each core is best")
    threads: Positive = Field(1, description="threads that a worker computes with")
    runtime: str = Field("auto", description="what executes the network: auto, torch, table, onnx or openvino")
    batch_tokens: Positive | Auto = Field(
        "auto", description="padded tokens computed at once; auto: what is measured to be fastest at start"
    )

    engine: Literal["fastserve", "vllm"] = Field(
        "fastserve", description="what a language model is served by: our own engine, or vLLM where it is installed"
    )
    engine_threads: Positive | Auto = Field(
        "auto", description="threads that a language model's engine computes with; auto: all cores, over the workers"
    )
    adapters: str | None = Field(
        None,
        description="NAME=MODEL,...: LoRA adapters of the one language model that is served, asked for by those names",
    )
    writing: EngineOptions = EngineOptions()
    """How the engine of a language model uses the machine."""

    max_texts: Positive = Field(1024, description="most texts in one request")
    max_choices: Positive = Field(128, description="most texts that one request to a language model may ask for")
    max_characters: Positive = Field(100_000, description="longest text")
    max_queue_requests: Positive = Field(1024, description="requests waiting for a model; over it the answer is 503")
    max_queue_tokens: Positive = Field(1 << 20, description="tokens waiting for a model; over it the answer is 503")

    start_seconds: Seconds = Field(300.0, description="time in which a worker must have loaded its models")
    hang_seconds: Seconds = Field(30.0, description="a worker without progress for so long is killed and replaced")
    watch_seconds: Seconds = Field(1.0, description="how often aliases are looked at for a new version")

    parity_tolerance: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto",
        description="largest difference to the scores of the evaluation; auto: 1e-3",
    )
    access_log: bool = Field(False, description="log one line for each request (never its texts)")
