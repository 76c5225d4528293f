"""Two runs that want one output folder: one has it, the other is told so, and nothing is mixed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from hz_runtime.batch.folder_lock import LOCK_NAME
from processes import finished, started, until, whole_records
from small_scans import results, write_scans

REFUSED = "error: another run of hz is writing into out.\n"


def test_started_at_once(tmp_path: Path, tiny_bundle: Path) -> None:
    write_scans(tmp_path / "in", 6)
    how = (tmp_path / "in", "--model", tiny_bundle)
    both = [started("run", *how, "--out", tmp_path / "out") for _ in range(2)]
    ended = [(process.communicate()[1], process.returncode) for process in both]
    for told, code in ended:  # the second waits for nothing: where the first had ended already, it ran too
        assert code == 0 or (code == 2 and told.startswith(REFUSED))
    assert 0 in [code for _, code in ended]
    assert whole_records(tmp_path / "out") == 6
    assert finished("run", *how, "--out", tmp_path / "whole")[0] == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_the_second_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path, tiny_bundle: Path) -> None:
    pytest.importorskip("niimath")
    write_scans(tmp_path / "in", 20)
    out = tmp_path / "out"
    first = started("run", tmp_path / "in", "--model", tiny_bundle, "--out", out)
    try:
        until(lambda: list(out.glob("*.json")), first)
        first.send_signal(signal.SIGSTOP)
        before = results(out)
        for command, more in (("run", ("--model", tiny_bundle)), ("prepare", ())):
            code, said, told = finished(command, tmp_path / "in", "--out", out, *more)
            assert (code, said) == (2, "")
            assert told.startswith(REFUSED) and "--out DIR" in told
        assert results(out) == before  # the temporaries of the run that stands still, too
    finally:
        first.kill()
        first.communicate()
    assert (out / LOCK_NAME).exists()
    assert finished("run", tmp_path / "in", "--model", tiny_bundle, "--out", out)[0] == 0
    assert whole_records(out) == 20
