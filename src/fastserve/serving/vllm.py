"""The same model folder served by vLLM, where it is installed in this environment."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fastserve.errors import ConfigError, UserError
from fastserve.serving.model import Named
from fastserve.serving.options import ServeOptions

_MODULE = "vllm.entrypoints.openai.api_server"
_CONFIG = "config.json"


def run_vllm(models: Sequence[Named], options: ServeOptions) -> int:
    """Become vLLM's server; does not come back. UserError where it cannot be."""
    command = vllm_command(models, options)
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "--engine vllm needs vLLM, which is not installed here and wants an environment of its own (it fixes the "
            "version of torch). There: pip install vllm fastserve-lm, and the same command; or leave --engine out, to "
            "serve with FastServe's own engine"
        )
    os.execv(sys.executable, command)


def vllm_command(models: Sequence[Named], options: ServeOptions) -> list[str]:
    """What is run. ConfigError for what vLLM's server has no word for."""
    from fastserve.bundle.bundle import Bundle
    from fastserve.registry import Registry

    if len(models) != 1:
        raise ConfigError(f"--engine vllm serves one model; {len(models)} are named: start one server for each")
    if options.api_key_file is not None:
        raise ConfigError(
            "--engine vllm knows no --api-key-file: give the key in the environment variable VLLM_API_KEY, and "
            "--insecure to say that this server does not look for any"
        )
    folder: Path = Registry().resolve(models[0].reference)
    task = Bundle.load(folder).manifest.task
    if task != "generation" or not (folder / _CONFIG).is_file():
        raise ConfigError(
            f"{folder} is of the task {task}{'' if (folder / _CONFIG).is_file() else f' and has no {_CONFIG}'}: vLLM "
            "serves language models whose folder reads as one of Hugging Face"
        )
    address = ["--host", options.host, "--port", str(options.port)]
    parallel = ["--tensor-parallel-size", str(options.writing.tensor_parallel)]
    named = ["--model", str(folder), "--served-model-name", models[0].name]
    return [sys.executable, "-m", _MODULE, *named, *address, *parallel]
