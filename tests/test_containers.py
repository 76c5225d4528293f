"""The container recipes: what they install, as whom they run, and that no torch is in them.

No image is built here; what an image's environment holds is resolved from the packages of this one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKER = (ROOT / "containers" / "Dockerfile").read_text()
APPTAINER = (ROOT / "containers" / "hz.def").read_text()
RECIPES = {"Dockerfile": DOCKER, "hz.def": APPTAINER}
CPU, GPU = ["cpu", "openvino", "prep", "dicom"], ["gpu", "prep", "dicom"]


def extras(recipe: str) -> list[list[str]]:
    """Every EXTRAS= of a recipe: the default and those that its comments offer."""
    return [found.split(",") for found in re.findall(r"EXTRAS=([a-z,]+)", recipe)]


def closure(wanted: list[str]) -> set[str]:
    """Names of all packages that an install of hz with these extras brings, by the metadata of those here."""
    project = PROJECT["project"]
    todo = [Requirement(text) for text in project["dependencies"]]
    todo += [Requirement(text) for extra in wanted for text in project["optional-dependencies"][extra]]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            key = canonicalize_name(requirement.name), extra
            if key in seen:
                continue
            seen.add(key)
            try:
                below = [Requirement(text) for text in requires(requirement.name) or ()]
            except PackageNotFoundError:
                pytest.skip(f"needs {requirement.name} to see what it brings")
            todo += [r for r in below if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_extras(recipe: str) -> None:
    found = extras(RECIPES[recipe])
    assert CPU in found and GPU in found and len(found) == 2
    for names in found:
        assert set(names) <= set(PROJECT["project"]["optional-dependencies"])
        assert not {"cpu", "gpu"} <= set(names)  # they overwrite each other


def test_no_torch_is_installed() -> None:
    brought = closure(CPU)
    assert {"numpy", "onnxruntime", "openvino", "niimath", "pydicom"} <= brought
    assert not {"torch", "onnx", "onnxscript", "tensorflow", "nvidia-cublas-cu12"} & brought
    assert not {"nilearn", "scikit-learn", "pandas"} & brought  # for the template alone, 270 MB
    assert "torch" in closure(["export"])  # the search does find it


def test_gpu_extras_name_no_torch() -> None:
    """Their packages are not installed here: only what hz itself asks for is looked at."""
    asked = [r for extra in GPU for r in PROJECT["project"]["optional-dependencies"][extra]]
    names = {re.split(r"[\[<>=~! ;]", requirement)[0] for requirement in asked}
    assert "onnxruntime-gpu" in names
    assert not {"torch", "onnx", "onnxscript"} & names


def test_everything_copied_is_there() -> None:
    docker = {
        name
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKER, re.MULTILINE)
        for name in line.split()
    }
    files = APPTAINER.split("%files")[1].split("%post")[0]
    apptainer = {line.split()[0] for line in files.splitlines() if line.strip()}
    assert docker == apptainer
    assert all((ROOT / name).exists() for name in docker)
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(package).parts[0] for package in packages} | {"constraints.txt"} <= docker


def test_who_runs_what() -> None:
    stages = DOCKER.split("\nFROM ")
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", stages[-1], re.MULTILINE)
    assert 'ENTRYPOINT ["hz-bids"]' in stages[-1] and 'exec hz-bids "$@"' in APPTAINER
    assert "pip" not in stages[-1] and "apt-get" not in DOCKER + APPTAINER
    assert set(re.findall(r"python:([\w.-]+)", DOCKER + APPTAINER)) == {"3.11-slim-bookworm"}


def test_the_installer_pins_and_checks() -> None:
    script = ROOT / "containers" / "install.sh"
    text = script.read_text()
    assert "--constraint constraints.txt" in text and '"torch"' in text
    commands = set(re.search(r"for command in (.+); do", text)[1].split())  # type: ignore[index]
    assert "hz-bids" in commands and commands <= set(PROJECT["project"]["scripts"])
    if shutil.which("sh"):
        assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
