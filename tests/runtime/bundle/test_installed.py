"""The reference bundle travels with the package, wherever pip puts it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tiny

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "runtime" / "hz_runtime" / "models" / "reference.hz"
WHERE = """
import hz_runtime
from hz_runtime.bundle.store import default_bundle, load_bundle
print(hz_runtime.__file__, default_bundle(), load_bundle().id, sep="\\n")
"""


def python(*arguments: str, cwd: Path, path: str) -> str:
    """Standard output of an interpreter that finds packages in `path` before the environment's."""
    env = {"PYTHONPATH": path, "PATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_install_elsewhere_finds_its_own_bundle(tmp_path: Path) -> None:
    """As `pip install --target` and `--user` do it: not below sys.prefix."""
    pytest.importorskip("build", reason="needs build:  pip install build")
    pytest.importorskip("hatchling", reason="needs hatchling:  pip install hatchling")
    search = ":".join(sys.path[1:])  # where build and hatchling are, and numpy
    python(
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
        cwd=tmp_path,
        path=search,
    )
    (wheel,) = tmp_path.glob("hz_mri-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".hz/" in name}
    assert held == {f"hz_runtime/models/reference.hz/{path.name}" for path in SHIPPED.iterdir()}
    target = tmp_path / "target"
    python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
        cwd=tmp_path,
        path=search,
    )
    tiny.make_tiny_bundle(tmp_path / "models" / "reference.hz")
    said = python("-c", WHERE, cwd=tmp_path, path=f"{target}:{search}").splitlines()
    package = target / "hz_runtime"
    assert said[:2] == [str(package / "__init__.py"), str(package / "models" / "reference.hz")]
    assert said[2].startswith("sha256:")


def test_the_source_distribution_holds_the_bundle() -> None:
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="needs hatchling:  pip install hatchling")
    held = {Path(file.relative_path) for file in sdist.SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {path.relative_to(ROOT) for path in SHIPPED.iterdir()} <= held
