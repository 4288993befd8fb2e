"""`fastserve doctor`: what this machine can do, and what is missing; and whether several nodes can train together."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from typing import Any

import click

from fastserve import __version__, config, device
from fastserve.cli.main import json_option, show
from fastserve.errors import ConfigError, UserError

EXTRAS = {
    "serve": ("httptools", "orjson", "uvloop"),
    "parquet": ("pyarrow",),
    "remote": ("fsspec", "datasets"),
    "pretrained": ("transformers",),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "compress": ("onnx", "onnxruntime", "openvino", "nncf"),
}


@click.command()
@click.argument("words", nargs=-1, metavar="[CONFIG.yaml] [KEY.PATH=VALUE]...")
@click.option("--rendezvous", help="HOST:PORT of a node, where all meet (several, by commas); run the same on each.")
@click.option("--nodes", help="Nodes, N or LEAST:MOST, instead of distributed.nodes.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait for the other nodes.")
@json_option
def doctor(words: tuple[str, ...], rendezvous: str | None, nodes: str | None, timeout: float, as_json: bool) -> None:
    """Show what this machine can do, and what is missing.

    With --rendezvous: check before a run on several nodes that they reach each other, that clocks, versions, data and
    configuration agree and $FASTSERVE_HOME is shared, and say which node is odd.
    """
    if rendezvous is not None or words:
        _check_nodes(words, rendezvous, nodes, timeout, as_json=as_json)
        return
    found = {**_machine(), **_torch(), "extras": _extras(), "home": _home()}
    show(found, _text(found), as_json=as_json)


def _check_nodes(
    words: tuple[str, ...], rendezvous: str | None, nodes: str | None, timeout: float, *, as_json: bool
) -> None:
    from fastserve.distributed import preflight
    from fastserve.distributed.network import Endpoint

    paths = [word for word in words if "=" not in word]
    if len(paths) > 1:
        raise ConfigError(f"expected one configuration file, found {', '.join(paths)}")
    given = {key: value for key, value in (("rendezvous", rendezvous), ("nodes", nodes)) if value is not None}
    settings = config.load_config(
        paths[0] if paths else None, [word for word in words if "=" in word], {"distributed": given}
    )
    place = settings.distributed.rendezvous
    if place is None:
        raise UserError("where do the nodes meet? Add --rendezvous HOST:PORT, HOST being one of them")
    endpoint, *further = Endpoint.parse_all(place)
    if settings.distributed.nodes_range[1] < 2:
        raise UserError("how many nodes shall meet? Add --nodes N, two or more")
    compared = settings if words else None
    request = preflight.Request(endpoint, settings.distributed.nodes_range, compared, timeout, further)
    outcome = preflight.check(request)
    show(outcome.to_json(), outcome.describe(), as_json=as_json)
    if not outcome.passed:
        raise click.exceptions.Exit(1)


def _machine() -> dict[str, Any]:
    return {
        "fastserve": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": device.cores(),
        "bf16": bool({"avx512_bf16", "amx_bf16", "bf16"} & device.processor_flags()),
        "int8": bool({"avx512_vnni", "avx_vnni", "amx_int8"} & device.processor_flags()),
    }


def _torch() -> dict[str, Any]:
    import torch

    from fastserve.generation.native import decoding

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"torch": torch.__version__, "gpus": gpus, "native": decoding() is not None}


def _extras() -> dict[str, dict[str, str | None]]:
    return {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()}


def _version(name: str) -> str | None:
    return metadata.version(name) if importlib.util.find_spec(name) else None


def _home() -> dict[str, Any]:
    folder = config.home()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return {
        "folder": str(folder),
        "writable": os.access(existing, os.W_OK),
        "free_gib": round(shutil.disk_usage(existing).free / 2**30, 1),
    }


def _text(found: dict[str, Any]) -> str:
    lines = [
        f"FastServe {found['fastserve']}, Python {found['python']}, torch {found['torch']}, {found['system']}",
        f"processor: {found['cores']} cores, bf16 {_yes(found['bf16'])}, int8 dot products {_yes(found['int8'])}",
        "decoders are trained, and write, with "
        + ("C code, built here" if found["native"] else "torch's kernels alone: C code needs AVX-512 and gcc"),
        f"GPU: {', '.join(found['gpus']) or 'none; everything runs on the processor'}",
        f"models and runs: {found['home']['folder']} "
        f"({'writable' if found['home']['writable'] else 'NOT writable'}, {found['home']['free_gib']} GiB free)",
    ]
    for extra, names in found["extras"].items():
        missing = [name for name, version in names.items() if version is None]
        have = ", ".join(f"{name} {version}" for name, version in names.items() if version)
        hint = f"missing {', '.join(missing)}: pip install 'fastserve-lm[{extra}]'" if missing else have
        lines.append(f"{extra:>10}: {hint}")
    return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
