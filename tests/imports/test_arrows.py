"""The rooms' arrows (docs/architecture.md), read from the source: nothing is imported to find out."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "hz_runtime": "runtime",
    "hz_calibration": "calibration",
    "hz_train": "train",
    "hz_export": "export",
    "hz_cli": "cli",
}
# Room -> the rooms it may import.
ARROWS = {
    "hz_runtime": set(),
    "hz_calibration": {"hz_runtime"},
    "hz_train": {"hz_runtime"},
    "hz_export": {"hz_train", "hz_calibration", "hz_runtime"},
    "hz_cli": set(ROOMS) - {"hz_cli"},
}
# Package -> the rooms that may import it at all.
KEPT_TO = {
    "torch": {"hz_train", "hz_export"},
    "safetensors": {"hz_train", "hz_export"},
    "tensorboard": {"hz_train"},
    "onnx": {"hz_export", "hz_calibration"},
    "onnxscript": {"hz_export"},
    "polygraphy": {"hz_export", "hz_calibration"},
    "sklearn": {"hz_train"},
    "matplotlib": {"hz_train"},
    "nilearn": {"hz_train"},
}
# What the runtime may import when a module of it is imported; anything else inside functions.
RUNTIME_AT_TOP = {"numpy", "nibabel", "hz_runtime", "isal"}
CLI_AT_TOP = {"click", "numpy", "hz_cli"}


def imports(nodes: Iterable[ast.AST], room: str, inside: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether it runs only when a function does) of every import; TYPE_CHECKING ones not."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, inside
        elif isinstance(node, ast.ImportFrom):
            yield (room if node.level else str(node.module)), node.lineno, inside
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imports(node.orelse, room, inside)
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(ast.iter_child_nodes(node), room, inside or function)


def found(room: str) -> Iterator[tuple[str, str, bool]]:
    """(where, top-level package, inside a function) of every import of a room."""
    for path in sorted((ROOT / ROOMS[room] / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for module, line, inside in imports([tree], room):
            yield f"{path.relative_to(ROOT)}:{line} imports {module}", module.partition(".")[0], inside


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_along_the_arrows(room: str) -> None:
    wrong = [w for w, top, _ in found(room) if top in ROOMS and top != room and top not in ARROWS[room]]
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_heavy_packages_stay_in_their_rooms(room: str) -> None:
    wrong = [w for w, top, _ in found(room) if top in KEPT_TO and room not in KEPT_TO[top]]
    assert not wrong


def test_the_runtime_imports_little_at_the_top() -> None:
    allowed = RUNTIME_AT_TOP | set(sys.stdlib_module_names)
    assert not [w for w, top, inside in found("hz_runtime") if not inside and top not in allowed]


def test_commands_import_the_rooms_inside_functions() -> None:
    wrong = [w for w, top, inside in found("hz_cli") if not inside and top in ROOMS and top != "hz_cli"]
    assert not wrong
    allowed = CLI_AT_TOP | set(sys.stdlib_module_names)
    assert not [w for w, top, inside in found("hz_cli") if not inside and top not in allowed]


def test_every_room_is_found() -> None:
    for room, folder in ROOMS.items():
        assert (ROOT / folder / room / "__init__.py").is_file(), f"{folder}/{room} is no package"


def test_the_walk_sees_through_functions_and_types() -> None:
    source = (
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c.d\n"
        "def f():\n    try:\n        from e import g\n    except ImportError:\n        pass\n"
        "class K:\n    from . import h\n"
    )
    assert list(imports([ast.parse(source)], "hz_x")) == [
        ("a", 1, False),
        ("c.d", 5, False),
        ("e", 8, True),
        ("hz_x", 12, False),
    ]
