"""Arrows point one way: a room imports lower rows only, in every import statement and every "module:object" name."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastserve import plugins

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "fastserve"

ROWS: dict[int, tuple[str, ...]] = {
    0: ("types", "errors", "config", "plugins", "files", "device", "log"),
    1: ("text", "data", "models"),
    2: ("distributed", "generation"),
    3: ("tasks",),
    4: ("bundle",),
    5: ("evaluation", "registry"),
    6: ("training", "serving"),
    7: ("compression",),
    8: ("api",),
    9: ("cli",),
}
ROW = {room: row for row, rooms in ROWS.items() for room in rooms}

DOORS = {"__init__": {"api"}, "__main__": {"cli"}}
"""The package itself and `python -m`: neither lies in a row, each opens one door."""

HTTP = {"starlette", "uvicorn", "httptools", "fastapi"}
NO_TORCH_AT_ALL = {"text", "data", "registry", "types", "errors", "config", "plugins", "files", "log"}
NO_TORCH_ON_IMPORT = {"device", "tasks", "bundle", "evaluation", "serving", "api", "cli"}
WITH_TORCH = {"fastserve.bundle.runtimes.torch", "fastserve.tasks.token_loss"}
"""Modules of these rooms that are torch's alone: those who need them import them late."""


@dataclass(frozen=True)
class Import:
    """`importer` (a module) names `target` (a module of any package). late: inside of a function or by a string;
    typing: for types."""

    importer: str
    target: str
    line: int
    late: bool
    typing: bool

    def __str__(self) -> str:
        return f"{self.importer} line {self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["fastserve", *path.relative_to(SOURCE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)] = path
    return found


def imports_of(module: str, source: str, known: set[str]) -> Iterator[Import]:
    """Every import in `source`, wherever it stands, and every string that names a module of the package."""
    yield from _walk(ast.parse(source), module, known, late=False, typing=False)


def _walk(node: ast.AST, module: str, known: set[str], *, late: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for target in _targets(child, known):
            named = isinstance(child, ast.Constant)
            yield Import(module, target, getattr(child, "lineno", 0), late or named, typing)
        inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        yield from _walk(child, module, known, late=inside, typing=guarded)


def _targets(node: ast.AST, known: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["(relative)"]
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in known else str(node.module) for name in names]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        named = re.fullmatch(r"(fastserve(?:\.\w+)+)(:\w+)?", node.value)
        return [named[1]] if named and (named[2] or named[1] in known) else []
    return []


@functools.cache
def all_imports() -> list[Import]:
    found = modules()
    known = set(found)
    return [one for name, path in found.items() for one in imports_of(name, path.read_text("utf-8"), known)]


def room_of(module: str) -> str | None:
    """The room (or root file) of a module; None for the package itself and for other packages."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if first == "fastserve" else None


def is_upward(one: Import) -> bool:
    """Whether an import breaks the rule."""
    source, target = room_of(one.importer), room_of(one.target)
    if one.target == "(relative)":
        return True
    if target is None or source == target:
        return False
    if source in DOORS:
        return target not in DOORS[source] and ROW.get(target, 99) > 0
    if source == "plugins":
        return False  # its strings are checked against the tables below; its statements stay in row 0
    lower = ROW.get(target, 99) < ROW.get(str(source), -1)
    return not lower and not (ROW.get(target) == 0 and ROW.get(str(source)) == 0)


def test_every_module_lies_in_a_room_of_the_table() -> None:
    rooms = {room_of(name) for name in modules()} - set(DOORS) - {None}
    assert rooms <= set(ROW), f"not in the table: {rooms - set(ROW)}"


def test_no_import_points_upward_or_sideways() -> None:
    assert [str(one) for one in all_imports() if is_upward(one)] == []


@pytest.mark.parametrize(
    ("module", "source", "upward"),
    [
        ("fastserve.text.clean", "from fastserve.types import Ragged", False),
        ("fastserve.text.clean", "from fastserve import files, log", False),
        ("fastserve.text.clean", "def f():\n    from fastserve.bundle.bundle import Bundle", True),
        ("fastserve.text.clean", "if TYPE_CHECKING:\n    import fastserve.models.bag", True),
        ("fastserve.training.loop", "from fastserve import serving", True),
        ("fastserve.training.loop", "from fastserve.bundle.bundle import Bundle", False),
        ("fastserve.training.loop", "name = 'fastserve.serving.app:App'", True),
        ("fastserve.bundle.card", "from . import format", True),
        ("fastserve.files", "from fastserve.errors import StorageError", False),
        ("fastserve.files", "from fastserve.text.clean import normalize", True),
        ("fastserve.__init__", "def f():\n    from fastserve import api", False),
        ("fastserve.__init__", "from fastserve.training.loop import train", True),
        ("fastserve.unheard.of", "from fastserve.types import Ragged", True),
    ],
)
def test_the_rule_tells_good_from_bad(module: str, source: str, upward: bool) -> None:
    known = {"fastserve.serving", "fastserve.api", "fastserve.files", "fastserve.log"}
    assert any(is_upward(one) for one in imports_of(module, source, known)) is upward


def test_names_in_the_tables_stay_in_their_room() -> None:
    known = modules()
    for table in plugins.ALL:
        assert table.room in ROW
        for name, address in table.builtin.items():
            module, _, attribute = address.partition(":")
            assert room_of(module) == table.room, f"{table.kind} {name}"
            assert attribute.isidentifier()
            if module in known:
                assert re.search(rf"^(class|def) {attribute}\b", known[module].read_text("utf-8"), re.MULTILINE), (
                    address
                )
    statements = [one for one in all_imports() if room_of(one.importer) == "plugins" and ":" not in one.target]
    named = {address.partition(":")[0] for table in plugins.ALL for address in table.builtin.values()}
    assert {one.target for one in statements if room_of(one.target)} <= named | {"fastserve.errors"}


def test_no_module_waits_for_itself() -> None:
    """No cycle among the imports that run when a module is imported."""
    graph: dict[str, set[str]] = {}
    for one in all_imports():
        if not (one.late or one.typing) and one.target != one.importer and room_of(one.importer) != "plugins":
            graph.setdefault(one.importer, set()).add(one.target)
    list(graphlib.TopologicalSorter(graph).static_order())


def test_torch_stays_where_it_belongs() -> None:
    torch = [one for one in all_imports() if one.target.partition(".")[0] == "torch"]
    assert [str(one) for one in torch if room_of(one.importer) in NO_TORCH_AT_ALL] == []
    early = [one for one in torch if not (one.late or one.typing) and one.importer not in WITH_TORCH]
    assert [str(one) for one in early if room_of(one.importer) in NO_TORCH_ON_IMPORT] == []


def test_only_serving_knows_http() -> None:
    http = [one for one in all_imports() if one.target.partition(".")[0] in HTTP]
    assert [str(one) for one in http if room_of(one.importer) != "serving"] == []


@pytest.mark.parametrize(
    "imported", ["fastserve", "fastserve.bundle.predictor, fastserve.registry", "fastserve.tasks.classification"]
)
def test_importing_loads_neither_torch_nor_a_web_framework(imported: str) -> None:
    code = f"import sys, {imported}; print(sorted({{'torch', *{sorted(HTTP)!r}}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_table_in_the_documents_is_this_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows: dict[int, tuple[str, ...]] = {}
    for number, rooms, lives in re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", text, re.MULTILINE):
        names = lives if rooms == "root files" else rooms
        rows[int(number)] = (*rows.get(int(number), ()), *re.findall(r"`(\w+)`", names))
    assert rows == ROWS
