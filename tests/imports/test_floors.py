"""The floors inside the rooms (docs/architecture.md): who may import whom, and no circle of files."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

from import_graph import ROOMS, ROOT, arrows, circles, modules

# Packages of hz_runtime from the lowest floor up: each may import those before it, and its own modules.
FLOORS = (
    "io",
    "model_space",
    "bundle",
    "backends",
    "inference",
    "preparation",
    "results",
    "report",
    "dicom",
    "batch",
    "bids",
    "hospital",
)
MOST_ROOT_MODULES = 8
# Words that these rooms once used where the field has a term (docs/glossary.md).
OLD_NAMES = {
    "told", "stated", "explained", "carried", "ladder", "rung", "rungs", "floors", "yardstick", "Yardstick",
    "contender", "Contender", "contenders", "peers", "race", "small_volume", "Judge", "Watchful", "flow",
    "Flow",
}  # fmt: skip


def floor_of(module: str) -> int:
    """Index of a module's package in FLOORS; -1 for a module directly in hz_runtime."""
    parts = module.split(".")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else -1


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """Every import of hz_runtime that leads to a higher floor. hz_runtime itself names its public parts."""
    return sorted(
        f"{one} imports {other}"
        for one, others in graph.items()
        for other in others
        if one != "hz_runtime" and floor_of(other) > floor_of(one)
    )


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files: dict[str, Path] = {}
    for room in ROOMS:
        files |= modules(ROOT / room)
    assert len(files) > 200
    return arrows(files)


def test_no_circle_of_files(graph: dict[str, set[str]]) -> None:
    # The package's own front door imports its public names on use; what it names may ask it for the version.
    inner = {one: others - {"hz_runtime"} for one, others in graph.items()}
    assert circles(inner) == []


def test_the_runtime_keeps_its_floors() -> None:
    assert upward(arrows(modules(ROOT / "runtime"))) == []


def test_every_package_of_the_runtime_has_a_floor() -> None:
    packages = {p.parent.name for p in (ROOT / "runtime" / "hz_runtime").glob("*/__init__.py")}
    assert packages == set(FLOORS)


def test_few_modules_lie_in_the_root_of_the_runtime() -> None:
    assert len(list((ROOT / "runtime" / "hz_runtime").glob("*.py"))) <= MOST_ROOT_MODULES


def names_of(path: Path) -> set[str]:
    """Every name that a file defines: modules, functions, classes, arguments, variables, attributes."""
    found = {path.stem}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name.strip("_") for name in found}


def test_old_names_are_gone() -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(bad)
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        if (bad := names_of(path) & OLD_NAMES)
    }
    assert wrong == {}


def broken(tmp_path: Path, source: str) -> dict[str, set[str]]:
    """The arrows of a small hz_runtime whose io/volume.py holds `source`."""
    for package in ("", "io", "batch"):
        folder = tmp_path / "hz_runtime" / package
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "__init__.py").touch()
    (tmp_path / "hz_runtime" / "batch" / "run.py").write_text("from hz_runtime.io.volume import Volume\n")
    (tmp_path / "hz_runtime" / "io" / "volume.py").write_text(source)
    return arrows(modules(tmp_path))


@pytest.mark.parametrize(
    "source",
    [
        "from hz_runtime.batch.run import run_batch\n",
        "from ..batch import run\n",
        "import hz_runtime.batch.run\n",
        "def read():\n    from hz_runtime.batch import run\n",
        "import typing\nif typing.TYPE_CHECKING:\n    from hz_runtime.batch.run import run_batch\n",
    ],
)
def test_a_floor_that_is_broken_on_purpose_is_found(tmp_path: Path, source: str) -> None:
    graph = broken(tmp_path, source)
    assert upward(graph) == ["hz_runtime.io.volume imports hz_runtime.batch.run"]
    assert circles(graph) == [["hz_runtime.batch.run", "hz_runtime.io.volume"]]


def test_a_house_in_order_is_not_blamed(tmp_path: Path) -> None:
    graph = broken(tmp_path, "import os\n")
    assert upward(graph) == [] and circles(graph) == []
