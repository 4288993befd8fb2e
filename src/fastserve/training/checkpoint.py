"""Checkpoints without pickle: tensors in safetensors, everything else in JSON, a folder that is whole or absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fastserve import files
from fastserve.errors import BundleError
from fastserve.log import warn

KEPT = 2
"""The newest and the one before, in case that the newest is damaged."""


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `folder/step` and drop all but the newest. `state`: nested dicts, lists, numbers, strings, tensors."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _pack(state, "", tensors)
    place = folder / f"{step:09d}"
    if place.exists():
        return
    with files.new_folder(place) as temporary:
        save_file(tensors, temporary / "tensors.safetensors")
        files.write_json(temporary / "state.json", tree)
        files.write_sums(temporary)
    for old in sorted(p for p in folder.iterdir() if not files.is_leftover(p))[:-KEPT]:
        shutil.rmtree(old)
    files.remove_leftovers(folder, older_than_seconds=0)  # the run folder is locked: nobody else writes here


def newest(folder: Path) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint, or None. A damaged one is named and the one before it is taken."""
    if not folder.is_dir():
        return None
    for place in sorted((p for p in folder.iterdir() if not files.is_leftover(p)), reverse=True):
        try:
            faults = files.verify_sums(place)
            if not faults:
                tensors = load_file(place / "tensors.safetensors")
                state: dict[str, Any] = _unpack(json.loads((place / "state.json").read_text("utf-8")), tensors)
                return state
        except BundleError as error:
            faults = [str(error)]
        warn(f"checkpoint {place.name} is damaged and is not used: {'; '.join(faults)}")
    return None


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # tied weights share memory, which the format refuses
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]}
    return {"value": value}


def _unpack(tree: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    kind, content = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind == "list":
        return [_unpack(item, tensors) for item in content]
    return content
