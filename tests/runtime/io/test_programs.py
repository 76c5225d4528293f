"""Programs of others end within their bounds, whatever they do."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from hz_runtime.io import programs
from hz_runtime.io.programs import Ended, run_program

pytestmark = pytest.mark.requirement("bounded-programs")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory and files are bounded on Linux alone")


def run(script: str, folder: Path, seconds: float = 60) -> Ended:
    return run_program(["/bin/sh", "-c", script], folder, seconds=seconds, given=0)


def test_what_it_says_and_how_it_ends(tmp_path: Path) -> None:
    ended = run("pwd; echo wrong >&2; cat; exit 3", tmp_path)  # nothing waits for a terminal
    assert ended == Ended(3, f"{tmp_path}\n", "wrong\n") and not ended.crashed
    assert run("kill -SEGV $$", tmp_path) == Ended(-11, "", "")
    assert run("kill -SEGV $$", tmp_path).crashed
    assert not run("kill -KILL $$", tmp_path).crashed
    with pytest.raises(FileNotFoundError):
        run_program([str(tmp_path / "none")], tmp_path, seconds=1, given=0)


def test_one_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    ended = run("sleep 300 & echo $!; echo on; wait", tmp_path, seconds=0.3)
    assert ended.code is None and not ended.crashed and ended.out.endswith("on\n")
    child = Path("/proc") / ended.out.split()[0]
    for _ in range(1000):  # whoever inherits it has to notice its end
        if not child.exists() or " Z " in (child / "stat").read_text():
            return
        time.sleep(0.01)
    pytest.fail("what it had started is still there")


@LINUX
def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LEAST_MEMORY", 1 << 27)
    code = "import time; time.sleep(.1); held = bytearray(150 << 20); print('got it')"
    little, much = (
        run_program([sys.executable, "-ISc", code], tmp_path, seconds=60, given=given)
        for given in (0, 1 << 22)
    )
    assert little.code == 1 and "MemoryError" in little.err
    assert (much.code, much.out) == (0, "got it\n")  # a larger input explains it


@LINUX
def test_files_are_bounded_and_so_is_what_is_kept_of_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "LEAST_FILE", 1 << 20)
    ended = run("exec yes", tmp_path)
    assert ended.crashed and len(ended.out) == 4096
    assert run("exec cat /dev/zero > big", tmp_path).crashed
    assert os.path.getsize(tmp_path / "big") <= 1 << 20
