"""The benchmarks measure, and no test runs them; what they take from hz must be there all the same."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parent.parent / "benchmarks").glob("*.py"))


def borrowed(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a script imports from hz, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hz_"):
            for alias in node.names:
                yield str(node.module), alias.name
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "__name__") for alias in node.names if alias.name.startswith("hz_"))


def absent(module: str, name: str) -> bool:
    """Whether neither the module has such a name nor its package such a module."""
    try:
        if hasattr(importlib.import_module(module), name):
            return False
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("hz_"):
            pytest.skip(f"needs {error.name}")
        return True
    return False


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_benchmark_takes_from_hz_is_there(script: Path) -> None:
    assert [f"{module}.{name}" for module, name in borrowed(script.read_text()) if absent(module, name)] == []


def test_what_is_gone_is_found() -> None:
    source = "import hz_cli.run\ndef f():\n    from hz_runtime.errors import HzError, NoSuchError\n"
    source += "    from hz_runtime import errors, nowhere\n    from hz_runtime.gone import x\n    import os\n"
    found = list(borrowed(source))
    assert len(found) == 6
    assert [name for module, name in found if absent(module, name)] == ["NoSuchError", "nowhere", "x"]
    assert "gpu_check" in [path.stem for path in SCRIPTS]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the scripts, from which they can be imported."""
    folder = SCRIPTS[0].parent
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.usefixtures("benchmarks")
def test_a_refused_form_is_near_to_nothing() -> None:
    pytest.importorskip("nibabel")
    from imported_invariance import compared

    verdicts = ("within_a_year", "within_1_percent_of_the_spread")
    near = compared({"as it is": 40.0, "0.5 mm": 40.05}, 10.0)
    assert [near[v] for v in verdicts] == [True, True] and near["refused"] == []
    refused = compared({"as it is": 40.0, "0.5 mm": None}, 10.0)
    assert [refused[v] for v in verdicts] == [False, False] and refused["refused"] == ["0.5 mm"]
    assert not any(compared({"as it is": None, "0.5 mm": None}, 10.0)[v] for v in verdicts)
    assert compared({"as it is": 40.0, "0.5 mm": 41.5}, None)[verdicts[1]] is False


def test_the_table_of_costs_is_what_its_script_prints(benchmarks: Path) -> None:
    from scale_cost import HEADS, table

    folder = benchmarks
    assert table(HEADS) in (folder.parent / "docs" / "scale.md").read_text(), (
        "python benchmarks/scale_cost.py"
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_of_a_child_is_not_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS[0].parent))
    waited_for = importlib.import_module("process_memory").waited_for
    ours = bytearray(b"x") * 200_000_000
    made = "held = bytearray(b'x') * 40_000_000; del held; import time; time.sleep(0.3)"
    usage, peak = waited_for(process := subprocess.Popen([sys.executable, "-c", made]))
    assert process.returncode == 0
    assert usage.ru_maxrss * 1024 > len(ours)  # why it is not taken
    assert 40_000_000 < peak < 100_000_000
