"""The Boutiques descriptors: those committed are those of the commands, and Boutiques takes them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from hz_cli import boutiques

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
AGAIN = "the command line has changed; in the repository:  python -m hz_cli.boutiques"


@pytest.mark.parametrize("name", boutiques.COMMANDS)
def test_the_committed_descriptor_is_that_of_the_command(name: str) -> None:
    made = boutiques.encoded(boutiques.descriptor(name, VERSION))
    assert (ROOT / "boutiques" / f"{name}.json").read_text("utf-8") == made, AGAIN


def test_what_it_says_of_hz_bids() -> None:
    told = boutiques.descriptor("hz-bids", "1")
    inputs = {item["id"]: item for item in told["inputs"]}
    assert told["command-line"].startswith("hz-bids [BIDS_DIR] [OUT] [LEVEL] ")
    assert inputs["level"]["value-choices"] == ["participant", "group"]
    assert inputs["bids_dir"]["type"] == "File" and inputs["out"]["type"] == "String"
    assert inputs["participant_label"]["list"] and inputs["overwrite"]["type"] == "Flag"
    assert inputs["n_cpus"] | {"type": "Number", "integer": True, "minimum": 1} == inputs["n_cpus"]
    assert inputs["space"]["default-value"] == "native"
    assert not {"help", "version"} & set(inputs)
    assert {code["code"] for code in told["error-codes"]} == {2, 3, 4, 5, 130}


def test_it_is_written(tmp_path: Path) -> None:
    done = CliRunner().invoke(boutiques.main, ["--out", str(tmp_path / "b")])
    assert done.exit_code == 0
    assert json.loads((tmp_path / "b" / "hz-run.json").read_text())["name"] == "hz-run"


@pytest.mark.parametrize("name", boutiques.COMMANDS)
def test_boutiques_accepts_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bosh validates the descriptor, and turns an invocation into the command line that hz takes."""
    pytest.importorskip("boutiques", reason="needs boutiques:  pip install boutiques")

    def bosh(*arguments: object) -> str:
        code = "import sys; from boutiques.bosh import bosh; bosh(sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    (tmp_path / "study").mkdir()
    (tmp_path / "a.nii").touch()
    values = {
        "hz-bids": {"bids_dir": "study", "out": "o", "level": "participant", "participant_label": ["1", "2"]},
        "hz-run": {"inputs": ["a.nii"], "out": "o", "overwrite": True},
    }
    descriptor = ROOT / "boutiques" / f"{name}.json"
    bosh("validate", descriptor)
    (tmp_path / "values.json").write_text(json.dumps(values[name]))
    shown = bosh("exec", "simulate", descriptor, "-i", tmp_path / "values.json")
    line = next(line for line in shown.splitlines() if line.startswith(name)).split()
    command = importlib.import_module(f"hz_cli.{boutiques.COMMANDS[name]}").main
    monkeypatch.chdir(tmp_path)
    taken = command.make_context(name, line[1:]).params
    assert taken["out"] == Path("o")
    assert taken["inputs" if name == "hz-run" else "subjects"] == (
        ("a.nii",) if name == "hz-run" else ("1", "2")
    )
    assert taken["overwrite"] is (name == "hz-run")
