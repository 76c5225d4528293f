"""The recipes of docs/extending.md, followed to the letter in a copy of the packages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import result_schemas
from small_cohort import write_cohort

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("runtime", "calibration", "train", "export", "cli")
# Edits by recipe, as the page says in words.
RECIPES = {"An engine": 2, "A network": 3, "A study": 2, "An output column": 2}
WORDS = {2: "two", 3: "three"}
EDIT = re.compile(
    r"^\d+\. (?P<verb>New file|In) `(?P<path>[^`]+)`(?P<where>.*?):\n\n"
    r"   ```(?:python)?\n(?P<code>.*?)\n   ```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Edit:
    """One step of a recipe. after : the line that `code` follows; "" for a file of its own."""

    path: str
    after: str
    code: str

    def apply(self, tree: Path) -> None:
        path = tree / self.path
        if not self.after:
            assert not path.exists()
            path.write_text(self.code + "\n")
            return
        text = path.read_text()
        assert f"\n{text}".count(f"\n{self.after}\n") == 1, (self.path, self.after)
        path.write_text(text.replace(f"{self.after}\n", f"{self.after}\n{self.code}\n"))


def recipe(heading: str) -> tuple[str, list[Edit]]:
    """A recipe's text and its edits."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    edits = []
    for found in EDIT.finditer(text):
        after = re.findall(r"`([^`]+)`", found["where"])
        after = [line for line in after if line != "Prediction"]
        assert bool(after) == (found["verb"] == "In")
        edits.append(Edit(found["path"], after[0] if after else "", lines(found["code"])))
    return text, edits


def lines(code: str) -> str:
    """A block's code without the indentation of the list that it stands in."""
    return "\n".join(line.removeprefix("   ") for line in code.splitlines())


@dataclass(frozen=True)
class Copy:
    """A copy of the packages and of the tests' helpers, in which every recipe was followed."""

    tree: Path

    def run(self, *command: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """`python COMMAND` with the copy's packages; fails where the command does."""
        rooms = [str(self.tree / room) for room in ROOMS]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(rooms)}
        done = subprocess.run(
            [sys.executable, *command],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            **more,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    tree = tmp_path_factory.mktemp("copy")
    skipped = shutil.ignore_patterns("__pycache__", "reference.hz")
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=skipped)
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    edits = [edit for heading in RECIPES for edit in recipe(heading)[1]]
    for edit in edits:
        edit.apply(tree)
    after = {path: path.read_bytes() for path in tree.rglob("*.py")}
    changed = {path.relative_to(tree).as_posix() for path in after if after[path] != before.get(path)}
    assert changed == {edit.path for edit in edits}
    return Copy(tree)


@pytest.mark.parametrize(("heading", "count"), RECIPES.items())
def test_a_recipe_names_all_its_edits(heading: str, count: int) -> None:
    text, edits = recipe(heading)
    assert len(edits) == count == len(re.findall(r"^\d+\. ", text, re.MULTILINE))
    assert re.search(rf"takes\s+{WORDS[count]}\s+edits", text)


@pytest.fixture(scope="module")
def results(copy: Copy, tmp_path_factory: pytest.TempPathFactory, head: Any, tiny_bundle: Path) -> Path:
    """What hz-run writes with the toy engine and the toy column."""
    folder = tmp_path_factory.mktemp("run")
    data, affine = head()
    nib.save(nib.Nifti1Image(data, affine), folder / "sub-1_T1w.nii.gz")
    out = folder / "out"
    copy.run(
        "-m", "hz_cli.run", str(folder / "sub-1_T1w.nii.gz"), "--model", str(tiny_bundle),
        "--require", "plain", "--space", "model", "--out", str(out),
    )  # fmt: skip
    return out


def test_a_toy_engine_runs_the_networks(results: Path) -> None:
    run = json.loads((results / "run.json").read_bytes())
    assert run["backend"]["name"] == "plain"
    assert run["options"]["require"] == "plain"
    assert any("plain: runs harmonizer.onnx" in line for line in run["backend"]["ladder"])
    (sidecar,) = results.glob("*_T1w.json")
    assert json.loads(sidecar.read_bytes())["GeneratedBy"][0]["Engine"]["Name"] == "plain"


def test_a_toy_engine_meets_the_contract(copy: Copy) -> None:
    shutil.copytree(ROOT / "tests", copy.tree / "tests", dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", copy.tree)
    chosen = "plain and (batch_is_free or non_finite_output or closed or nothing_is_sent)"
    tests = "tests/contracts/test_backends.py"
    done = copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", chosen, cwd=copy.tree)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 9
    assert "skipped" not in done.stdout


def test_a_toy_column_is_in_every_result(results: Path) -> None:
    run = json.loads((results / "run.json").read_bytes())
    (volume,) = results.glob("*.nii.gz")
    mean = float(np.asarray(nib.load(volume).dataobj, np.float64).mean())
    value = run["scans"][0]["brightness"]
    assert value == pytest.approx(mean, abs=1e-4)  # written as int16
    (sidecar,) = results.glob("*_T1w.json")
    assert json.loads(sidecar.read_bytes())["hz"]["predictions"]["brightness"] == value
    header, row = ((results / "predictions.tsv").read_text().splitlines())[:2]
    assert dict(zip(header.split("\t"), row.split("\t"), strict=True))["brightness"] == f"{value:.4f}"
    page = (results / "report.html").read_text()
    assert f"{value:.3f}" in page and "Brightness is the mean of the harmonized grid." in page
    assert not result_schemas.faults(results)


def test_a_toy_study_writes_its_table(copy: Copy, tmp_path: Path) -> None:
    table = write_cohort(tmp_path / "cohort", {"oslo": 2, "rome": 2})
    arguments = (
        "--cohort",
        str(table),
        "--reference",
        "oslo",
        "--preset",
        "quick",
        "--out",
        str(tmp_path / "out"),
    )
    done = copy.run("-m", "hz_cli.evaluate", "brightness", *arguments)
    assert "oslo: raw: Mean" in done.stdout
    rows = json.loads((tmp_path / "out" / "brightness.json").read_bytes())["tables"][0]["rows"]
    means = {row["site"]: row["metrics"]["mean"]["value"] for row in rows}
    assert [row["n"] for row in rows] == [2, 2]
    assert means["rome"] > means["oslo"] > 0  # rome's tone curve, v ** 0.6, brightens every tone below 1
    assert "How bright are the scans" in (tmp_path / "out" / "brightness.html").read_text()


NETWORK = """
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from hz_export.to_onnx import read_checkpoint, to_onnx
from hz_runtime.model_space.recipe import Recipe
from hz_train.checkpoint import save_checkpoint
from hz_train.mean_age import MeanAge

path = Path(sys.argv[1])
network = MeanAge(30.0)
with torch.no_grad():
    network.scale.fill_(50.0)
meta = {"kind": "mean_age", "network": {"youngest": 20.0}, "recipe": Recipe().to_dict()}
save_checkpoint(path, {f"age.{name}": t for name, t in network.state_dict().items()}, meta)
checkpoint = read_checkpoint(path)
assert (checkpoint.role, checkpoint.parameters) == ("age", 2)
model = to_onnx(checkpoint.network, "age", (8, 8, 8)).SerializeToString()
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
volumes = np.random.default_rng(0).random((3, 1, 8, 8, 8), np.float32)
(ages,) = session.run(["age"], {"volume": volumes})
np.testing.assert_allclose(ages, 30 + 50 * volumes.mean(axis=(2, 3, 4)), rtol=1e-5)
"""


def test_a_toy_network_becomes_onnx(copy: Copy, tmp_path: Path) -> None:
    copy.run("-c", NETWORK, str(tmp_path / "toy.safetensors"))
