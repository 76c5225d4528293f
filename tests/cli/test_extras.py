"""Commands without their extra: said at once, with what to install, and before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hz_cli import evaluate, options
from hz_cli.train import train
from hz_runtime.errors import UsageError

COHORT = ["--cohort", "none.tsv", "--out", "out"]
SITES = ["--source", "A", "--target", "B"]


@pytest.mark.parametrize(
    ("command", "arguments", "package", "extra"),
    [
        (train, ["cyclegan", *COHORT, *SITES], "torch", "train"),
        (train, ["canonical", *COHORT, *SITES], "safetensors", "train"),
        (train, ["age", *COHORT], "torch", "train"),
        (train, ["slice-age", *COHORT], "torch", "train"),
        (train, ["diagnosis", *COHORT, "--labels", "a,b"], "scipy", "train"),
        (evaluate.main, ["transfer", *COHORT, "--reference", "A"], "matplotlib", "evaluate"),
    ],
)
def test_the_extra_is_named(
    command: click.Command,
    arguments: list[str],
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("none.tsv").touch()
    monkeypatch.setitem(sys.modules, package, None)
    done = CliRunner().invoke(command, arguments)
    told = str(done.exception) if isinstance(done.exception, UsageError) else done.stderr
    assert f"needs {package}, which this environment does not have" in told, done.output
    assert f"pip install 'hz-mri[{extra}]'" in told
    assert not Path("out").exists()


def test_what_is_here_is_not_missed() -> None:
    options.need("a test", "dev", "click", "numpy")
