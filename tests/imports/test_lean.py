"""What importing hz_runtime costs: no training or export package, and for the package itself no numpy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch",
    "cryptography",
    "onnx",
    "polygraphy",
    "sklearn",
    "matplotlib",
    "openvino",
    "onnxruntime",
    "tensorrt",
    "tensorrt_lean",
    "tensorrt_rtx",
    "cuda",
    "hz_train",
    "hz_export",
    "hz_calibration",
    "hz_cli",
}
WALK = """
import importlib, json, pkgutil, sys
import hz_runtime
names = [m.name for m in pkgutil.walk_packages(hz_runtime.__path__, "hz_runtime.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
BARE = """
import json, sys
before = set(sys.modules)
import hz_runtime
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def fresh(code: str, *options: str) -> str:
    """Standard output of a new interpreter that sees the runtime room."""
    paths = [str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_without_heavy_packages() -> None:
    names, loaded = json.loads(fresh(WALK, "-W", "error"))
    assert {"hz_runtime.bundle.store", "hz_runtime.backends.ort", "hz_runtime.backends.ov"} <= set(names)
    assert not HEAVY & set(loaded)


def test_the_package_alone_imports_only_the_standard_library() -> None:
    loaded = set(json.loads(fresh(BARE)))
    assert loaded - set(sys.stdlib_module_names) == {"hz_runtime"}


@pytest.mark.parametrize(
    "name",
    [
        "HzError",
        "NetworkOptions",
        "Recipe",
        "Volume",
        "load_bundle",
        "open_networks",
        "read_volume",
        "write_volume",
    ],
)
def test_public_names_arrive_on_use(name: str) -> None:
    assert fresh(f"import hz_runtime; print(hz_runtime.{name}.__name__)").strip() == name


def test_version_and_unknown_names() -> None:
    code = (
        "import hz_runtime as h; print(h.__version__, hasattr(h, 'nonesuch'), set(h.__all__) <= set(dir(h)))"
    )
    version, unknown, listed = fresh(code).split()
    assert version
    assert (unknown, listed) == ("False", "True")
