"""A training that is ended from outside says what is kept and the command that goes on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from hz_cli.interrupts import resumable


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_to_go_on_is_said(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["/any/where/hz-train", "age", "--out", "my folder", "--folds", "4"])
    (tmp_path / "fold-1").mkdir()
    (tmp_path / "fold-1" / "0-last.safetensors").write_bytes(b"")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, resumable(tmp_path):
        os.kill(os.getpid(), number)
    assert end.value.code == code
    said = capsys.readouterr().err
    assert "finished epochs are kept" in said
    assert "  hz-train age --out 'my folder' --folds 4" in said.splitlines()
    assert signal.getsignal(signal.SIGTERM) is before


def test_before_the_first_epoch_it_says_that_nothing_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), resumable(tmp_path / "not made"):
        raise KeyboardInterrupt
    assert "nothing is kept" in capsys.readouterr().err
