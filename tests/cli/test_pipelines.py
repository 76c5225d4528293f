"""hz-bids for nipoppy and BABS, and the examples of workflows: made from the command, and taken by the tools.

The tools are no part of hz's environment. Their own checks run where they are installed: nipoppy 0.4.8,
Snakemake 9 and Nextflow on the PATH.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from hz_cli import pipelines
from hz_cli.bids import main as bids
from hz_cli.run import main as run
from processes import environment
from small_scans import results, write_scans

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "containers" / "pipelines"
WORKFLOWS = ROOT / "examples" / "workflows"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MADE = {name: make(VERSION) for name, make in pipelines.FILES.items()}


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}, which is not installed here")
    return found


@pytest.mark.parametrize("name", pipelines.FILES)
def test_the_committed_file_is_that_of_the_command(name: str) -> None:
    again = "the command has changed; in the repository:  python -m hz_cli.pipelines"
    assert (FOLDER / name).read_text("utf-8") == MADE[name], again


def parsed(words: list[str]) -> dict[str, Any]:
    """What hz-bids understands of a command line."""
    return bids.make_context("hz-bids", words, auto_envvar_prefix=None).params


def test_the_invocation_is_a_command_line_of_hz_bids() -> None:
    described = {one["id"]: one for one in json.loads(MADE["nipoppy/descriptor.json"])["inputs"]}
    words: list[str] = []
    for name, value in json.loads(MADE["nipoppy/invocation.json"]).items():
        flag = described[name].get("command-line-flag")
        values = value if isinstance(value, list) else [value]
        words += [flag] * (flag is not None) + [str(one) for one in values if one is not True]
    params = parsed(words)
    assert params["subjects"] and params["level"] == "participant" and params["threads"] == pipelines.CORES


def test_the_tracker_finds_what_hz_bids_writes() -> None:
    """By the name in docs/bids.md, and no volume, which a bundle without a harmonizer does not write."""
    text = MADE["nipoppy/tracker.json"]
    for found, name in ((pipelines._SUBJECT, "sub-1"), (pipelines._SESSION, "ses-2")):
        text = text.replace(found, name)
    assert json.loads(text)["PATHS"] == ["sub-1/ses-2/sub-1_ses-2_predictions.tsv"]
    page = (ROOT / "docs" / "bids.md").read_text()
    assert "`sub-X/[ses-Y/]sub-X[_ses-Y]_predictions.tsv`" in page


def test_babs_calls_hz_bids_as_it_is() -> None:
    yaml = pytest.importorskip("yaml")
    read = yaml.safe_load(MADE["babs.yaml"])
    arguments = read["bids_app_args"]
    select = arguments.pop("$SUBJECT_SELECTION_FLAG")
    words = [word for pair in arguments.items() for word in pair if word]
    params = parsed(["BIDS", "outputs/hz", "participant", *words, select, "sub-01"])
    assert params["subjects"] == ("sub-01",) and params["memory"] == pipelines.MEMORY_GB * 1000
    asked = re.findall(r"--cpus-per-task=(\d+)|--mem=(\d+)G", read["cluster_resources"]["customized_text"])
    assert [a or b for a, b in asked] == [str(params["threads"]), str(pipelines.MEMORY_GB)]
    assert read["all_results_in_one_zip"] is True and read["zip_foldernames"] == {
        "hz": VERSION.replace(".", "-")
    }


def test_nipoppy_takes_the_files() -> None:
    done = subprocess.run(
        [program("nipoppy"), "pipeline", "validate", str(FOLDER / "nipoppy")],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Snakefile", "main.nf"])
def test_the_workflows_call_commands_that_are_there(name: str) -> None:
    """Every option of hz-run in them is one of hz-run, and all shards go into the folder that is gathered."""
    text = (WORKFLOWS / name).read_text()
    known = {option for param in run.params if isinstance(param, click.Option) for option in param.opts}
    calls = [line for line in text.splitlines() if "hz-run " in line and not line.startswith(("#", "//"))]
    assert len(calls) == 2 and any("gather" in line for line in calls)
    asked = set(re.findall(r"(?<= )--(?:out|threads|shard|plain)\b", text))
    assert asked == {"--out", "--threads", "--shard", "--plain"} <= known


@pytest.mark.parametrize(("tool", "arguments"), [
    ("snakemake", "-s {workflows}/Snakefile --cores 2 --config scans={scans} out={out} shards=2 {more}"),
    ("nextflow", "run {workflows}/main.nf --scans {scans} --out {out} --shards 2 {more}"),
])  # fmt: skip
def test_a_workflow_leaves_what_one_process_leaves(
    tool: str, arguments: str, tmp_path: Path, tiny_bundle: Path
) -> None:
    """Four scans, one of them no scan: two shards gathered are the bytes of a serial run."""
    found = program(tool)
    write_scans(tmp_path / "in", 3)
    (tmp_path / "in" / "sub-00_T1w.nii.gz").write_bytes(b"\x1f\x8b nothing")
    commands = tmp_path / "bin"
    commands.mkdir()
    wrapper = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hz_cli.run "$@"\n'
    (commands / "hz-run").write_text(wrapper)
    (commands / "hz-run").chmod(0o755)
    env = environment()
    env["PATH"] = os.pathsep.join([str(commands), env["PATH"]])
    env["HZ_BUNDLE"] = str(tiny_bundle)
    out = tmp_path / "out"
    words = arguments.format(workflows=WORKFLOWS, scans=tmp_path / "in", out=out, more="")
    done = subprocess.run(
        [found, *shlex.split(words)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    serial = tmp_path / "serial"
    code = subprocess.run(
        [str(commands / "hz-run"), str(tmp_path / "in"), "--out", str(serial), "--threads", "2", "--plain"],
        env=env, capture_output=True, check=False,
    ).returncode  # fmt: skip
    assert code == 3
    made = {name: data for name, data in results(out).items() if not name.startswith("shards/")}
    assert made == results(serial)
