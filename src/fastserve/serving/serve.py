"""The public door: `serve` checks the words, takes the port, and runs the supervisor."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from fastserve import log
from fastserve.config import name_and_address
from fastserve.errors import ConfigError, MissingExtraError
from fastserve.plugins import FLEETS
from fastserve.serving.options import HttpOptions, ServeOptions

BUNDLES = "fastserve.serving.bundles:BundleSource"
_LIBRARIES = ("httptools", "orjson", "uvloop")


def serve(models: Sequence[str], options: ServeOptions, *, source: str = BUNDLES) -> int:
    """Serve `models` until a signal ends it; the exit code.

    models: `name`, `name@3`, `name@alias` or a folder, each served under the model's name, or `NAME=MODEL` to say
    another. source: the ModelSource that finds and loads them, as module:Class. Raises a FastServeError where the
    words are wrong, the port is taken, or a model cannot serve.
    """
    for library in _LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise MissingExtraError(f"serving (it needs {library})", "serve")
    from fastserve.serving.keys import read_key_file
    from fastserve.serving.listener import address, bind
    from fastserve.serving.names import name_models
    from fastserve.serving.supervisor import Supervisor

    named = name_models(models)
    if options.adapters is not None and len(named) > 1:
        raise ConfigError(f"--adapters belong to one model, but {len(named)} are served: start a server for that one")
    if options.engine == "vllm":
        if options.on != "local" or options.replicas > 1:
            raise ConfigError(
                "--engine vllm is one server on this machine: leave --replicas and --on out, start one on each "
                "machine, and put `fastserve route http://HOST:PORT...` before them"
            )
        from fastserve.serving.vllm import run_vllm

        check_exposure(options)
        return run_vllm(named, options)
    keys = read_key_file(Path(options.api_key_file)) if options.api_key_file else []
    check_exposure(options)
    if options.on != "local" or options.replicas > 1:
        name, place = name_and_address(options.on)
        code: int = FLEETS.load_optional(name, "serving")(named, options, source, keys, place)
        return code
    listening = bind(options.host, options.port)
    try:
        names = ", ".join(model.name for model in named)
        log.say(f"loading {names}; {address(listening)} answers 503 until it is ready (Ctrl+C ends it)")
        return asyncio.run(Supervisor(named, options, source, listening, keys).run())
    finally:
        listening.close()


def check_exposure(options: HttpOptions) -> None:
    """Refuse to listen to other machines without keys, unless that is wanted."""
    if not (options.is_loopback or options.insecure or options.api_key_file):
        raise ConfigError(
            f"host {options.host} can be reached from other machines, and there is no API key file: give "
            "--api-key-file FILE (one key a line), or --insecure where anyone may use it, or --host 127.0.0.1"
        )
