"""`fastserve doctor`: what this machine can do, and what is missing."""

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
@json_option
def doctor(as_json: bool) -> None:
    """Show what this machine can do, and what is missing."""
    found = {**_machine(), **_torch(), "extras": _extras(), "home": _home()}
    show(found, _text(found), as_json=as_json)


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

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"torch": torch.__version__, "gpus": gpus}


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
