"""An empty word on a command line, as an unset variable of the shell leaves it, names no file.

pathlib takes it for the current folder: everything there would be run, or results written beside it.
"""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hz_cli.bids import main as bids
from hz_cli.dicom import dicom
from hz_cli.prepare import main as prepare
from hz_cli.run import main as run


@pytest.mark.parametrize(
    ("command", "words", "named"),
    [
        (run, [""], "INPUT"),
        (run, ["scan.nii.gz", ""], "INPUT"),
        (run, ["scan.nii.gz", "--out", ""], "--out"),
        (run, ["status", ""], "OUT"),
        (prepare, ["", "--out", "o"], "INPUT"),
        (dicom, ["list", ""], "IN"),
        (dicom, ["convert", "", "--out", "o"], "IN"),
        (bids, ["ds", "", "participant"], "OUT"),
    ],
)
def test_an_empty_word_is_refused(
    command: click.Command, words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds").mkdir()
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 2
    assert f"an empty word is given for {named}" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["ds"]
