"""Nested state as a tree that JSON can hold, with its tensors beside it by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

Where = tuple[str | int, ...]
"""The keys and positions that lead to a value, from the outermost."""
Tree = dict[str, Any]
"""{"dict": [[key, tree], ...]}, {"list": [tree, ...]}, {"tuple": [tree, ...]}, {"tensor": name} or {"value": plain}."""

_SEQUENCES: dict[str, type[list[Any]] | type[tuple[Any, ...]]] = {"list": list, "tuple": tuple}
_ESCAPES = (("~", "~0"), ("/", "~1"), ("@", "~2"), ("#", "~3"))


def pack(state: Any, root: str) -> tuple[Tree, dict[str, Tensor]]:
    """`state` as a tree, and its tensors by name. root: the first part of every name, without special characters."""
    tensors: dict[str, Tensor] = {}
    return _pack(state, root, tensors), tensors


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Tree:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{name}/{_part(key, name)}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(item, f"{name}/#{place}", tensors) for place, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"{name} is a {type(value).__name__}: state holds dicts, lists, numbers, strings, None and tensors")


def _part(key: object, name: str) -> str:
    """A key within a name, so that different keys give different names."""
    if isinstance(key, int) and not isinstance(key, bool):
        return f"#{key}"
    if not isinstance(key, str):
        raise TypeError(f"{name} has the key {key!r}: keys are strings or whole numbers")
    for character, escaped in _ESCAPES:
        key = key.replace(character, escaped)
    return key


def unpack(tree: Tree, tensors: Callable[[str], Tensor]) -> Any:
    """The state that was packed. tensors: gives the tensor of a name."""
    kind, content = next(iter(tree.items()))
    if kind == "tensor":
        return tensors(content)
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](unpack(item, tensors) for item in content)
    return content


def places(tree: Tree, where: Where = ()) -> Iterator[tuple[str, Where]]:
    """Name and place of every tensor in the tree."""
    kind, content = next(iter(tree.items()))
    if kind == "tensor":
        yield content, where
    elif kind == "dict":
        for key, item in content:
            yield from places(item, (*where, key))
    elif kind in _SEQUENCES:
        for place, item in enumerate(content):
            yield from places(item, (*where, place))
