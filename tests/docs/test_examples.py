"""The scripts in examples/ do what they say, at sizes of seconds."""

from __future__ import annotations

import importlib
import os
import runpy
import stat
import subprocess
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

import tiny
from hz_runtime.bundle.store import load_bundle
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.guided_filter import native_harmonized
from hz_runtime.model_space.recipe import Recipe, to_model_space
from small_cohort import write_cohort

ROOT = Path(__file__).resolve().parents[2]
SHELL = ROOT / "examples" / "own_cohort_to_bundle.sh"


def embedded(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["embed_in_python.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "embed_in_python.py"), run_name="__main__")


@pytest.mark.parametrize(("step", "noticed"), [(1, "nothing noticed"), (2, "look: slices of 5 mm")])
def test_hz_inside_another_program(
    head: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    step: int,
    noticed: str,
) -> None:
    data, affine = head((76, 90, 76), 2.5)
    data, affine[:, 2] = data[:, :, ::step], affine[:, 2] * step
    source, target = tmp_path / "scan.nii.gz", tmp_path / "harmonized.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), source)
    embedded([str(source), str(target), str(tiny_bundle)], monkeypatch)
    made = nib.load(target)
    np.testing.assert_array_equal(made.affine, affine)
    after = np.asarray(made.dataobj)
    assert after.shape == data.shape and not after[data == 0].any()
    # The tiny networks are closed forms; what carries their effect to native voxels has tests of its own.
    volume = read_volume(source)
    prepared = to_model_space(volume, Recipe())
    grid = tiny.expected_harmonized(prepared.grid[None, None])
    expected = volume.geometry.from_ras(native_harmonized(volume, prepared, grid[0, 0]))
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-4)
    raw = tiny.expected_age(grid)[0, 0]
    bias = tiny.tiny_manifest()["age_bias"]
    truth = (raw - bias["intercept"]) / bias["slope"]
    age, *notes = capsys.readouterr().out.splitlines()
    assert age == f"age {truth:.1f} years"
    assert len(notes) == 1 and notes[0].startswith(noticed)


def test_what_is_no_scan_is_said_to_another_program(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.float32), np.eye(4)), source)
    with pytest.raises(SystemExit) as ended:
        embedded([str(source), str(tmp_path / "out.nii.gz"), str(tiny_bundle)], monkeypatch)
    assert isinstance(ended.value.code, str) and "\n" in ended.value.code  # a message and its remedy
    assert not (tmp_path / "out.nii.gz").exists()


def commands_of(script: Path, arguments: list[str], tmp_path: Path) -> list[list[str]]:
    """The hz commands that a shell script gives, in order; none of them is run.

    So that they can be run in this process: torch takes longer to import than these networks to train.
    """
    shims, log = tmp_path / "shims", tmp_path / "commands"
    shims.mkdir()
    for name in ("hz-train", "hz-export", "hz-run"):
        shim = shims / name
        shim.write_text(f'#!/bin/sh\n{{ printf "%s\\036" {name} "$@"; echo; }} >> "{log}"\n')
        shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    log.write_text("")
    env = {**os.environ, "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(script), *arguments], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\036")[:-1] for line in log.read_text().split("\n") if line]


def command(name: str) -> click.Command:
    module = importlib.import_module(f"hz_cli.{name.removeprefix('hz-')}")
    found: click.Command = module.train if name == "hz-train" else module.main
    return found


@pytest.mark.slow
def test_from_a_cohort_to_a_bundle_and_its_results(tmp_path: Path) -> None:
    table = write_cohort(tmp_path / "cohort", {"oslo": 4, "rome": 3})
    work = tmp_path / "work"
    commands = commands_of(SHELL, [str(work), str(table), "rome", "oslo"], tmp_path)
    assert [name for name, *_ in commands] == ["hz-train", "hz-train", "hz-export", "hz-run"]
    for name, *arguments in commands:
        sizes = ["--epochs", "1", "--width", "4"] if name == "hz-train" else []
        done = CliRunner().invoke(command(name), arguments + sizes)
        assert done.exit_code == 0, (name, done.output, done.exception)
    bundle = load_bundle(work / "own.hz")
    assert {entry.role for entry in bundle.models} == {"harmonizer", "age"}
    assert bundle.model("harmonizer").target == "oslo"
    lines = (work / "results" / "predictions.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == [f"rome-{n:02}.nii.gz" for n in range(3)]
    assert len(list((work / "results").glob("*_desc-harmonized_T1w.nii.gz"))) == 3


def test_without_a_cohort_one_is_simulated(tmp_path: Path) -> None:
    # As far as the scans are read from the table, which is not there: nothing is simulated here.
    script = tmp_path / "start.sh"
    script.write_text(SHELL.read_text().split("# Checked against torch")[0])
    (_, verb, *arguments), *rest = commands_of(script, [str(tmp_path / "work")], tmp_path)
    train = command("hz-train")
    assert isinstance(train, click.Group)
    asked = train.commands[verb].make_context(verb, arguments).params
    assert asked["out"] == tmp_path / "work" / "cohort"
    assert "reference,steep" in map(str, asked.values())
    assert all(str(asked["out"] / "participants.tsv") in words for words in rest)
