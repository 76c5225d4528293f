"""A training that is ended from outside says what is kept and the command that goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hz_cli.interrupts import resumable

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: what runs the tests has handlers of its own for these signals.
ENDED = """
import os, signal, sys
from pathlib import Path
from hz_cli.interrupts import resumable
out, number = Path(sys.argv[1]), int(sys.argv[2])
sys.argv = ["/any/where/hz-train", "age", "--out", "my folder", "--folds", "4"]
with resumable(out):
    os.kill(os.getpid(), number)
    signal.pause()
"""


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])  # SIGINT and SIGTERM
def test_the_command_to_go_on_is_said(number: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "fold-1").mkdir()
    (tmp_path / "fold-1" / "0-last.safetensors").write_bytes(b"")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in ("runtime", "cli"))}
    command = [sys.executable, "-c", ENDED, str(tmp_path), str(number)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert "finished epochs are kept" in done.stderr
    assert "  hz-train age --out 'my folder' --folds 4" in done.stderr.splitlines()


def test_before_the_first_epoch_it_says_that_nothing_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), resumable(tmp_path / "not made"):
        raise KeyboardInterrupt
    assert "nothing is kept" in capsys.readouterr().err
