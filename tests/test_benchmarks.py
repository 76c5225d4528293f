"""The benchmarks measure, and no test runs them; what they take from hz must be there all the same."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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


@pytest.mark.usefixtures("benchmarks")
def test_forms_beside_turn_by_the_header_alone_or_come_back_blurred(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    pytest.importorskip("scipy")
    from imported_invariance import DEGREES, written_beside

    grid = np.indices((24, 20, 22)) - np.array([11.5, 9.5, 10.5]).reshape(3, 1, 1, 1)
    head = (np.linalg.norm(grid, axis=0) < 7) * (100 + 10 * (np.indices((24, 20, 22)).sum(axis=0) % 2))
    nib.save(nib.Nifti1Image(head.astype(np.float32), np.diag([2.0, 2, 2, 1])), tmp_path / "head.nii")
    forms = {name: nib.load(path) for name, path in written_beside(tmp_path / "head.nii", tmp_path).items()}
    assert len(forms) == 6
    for name, form in forms.items():
        voxels = form.get_fdata()
        if name.startswith("header"):
            np.testing.assert_array_equal(voxels, head)
            turn = form.affine[:3, :3] / 2
            assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) == pytest.approx(DEGREES, abs=1e-4)
        else:
            inside = np.linalg.norm(grid, axis=0) < 5
            np.testing.assert_array_equal(form.affine, np.diag([2.0, 2, 2, 1]))
            np.testing.assert_allclose(voxels[inside].mean(), head[inside].mean(), rtol=0.01)
            assert voxels[inside].std() < 0.8 * head[inside].std()


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
