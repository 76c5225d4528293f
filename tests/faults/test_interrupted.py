"""Ctrl-C and SIGTERM while heads are prepared; hz-run's are in tests/cli/test_run.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from processes import fake_niimath, finished, started, until, whole_records
from small_scans import results

STRIPPED = ("--brain-mask", "none", "--plain")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_in_flight_is_finished(
    tmp_path: Path, brains: Path, undisturbed: Path, number: signal.Signals
) -> None:
    fake, out = tmp_path / "fake", tmp_path / "out"
    path = (fake_niimath(fake),)
    (fake / "hold").touch()
    how = (brains, *STRIPPED, "--workers", 2)
    process = started("prepare", *how, "--out", out, path=path)
    try:
        until(lambda: len(list(fake.glob("begun-*"))) == 2, process)
        os.killpg(process.pid, number)  # as a terminal does: to the command and to what it started
        assert process.stderr is not None
        assert any("stopping after the scans in flight" in line for line in process.stderr)
    finally:
        (fake / "hold").unlink()
        said, told = process.communicate()
    assert process.returncode == 130
    assert "4 scans: 2 ok, 2 not reached" in said
    assert "Traceback" not in said + told
    assert whole_records(out) == 2
    rows = [row.split("\t") for row in (out / "preparation.tsv").read_text().splitlines()[1:]]
    assert sorted(row[1] for row in rows) == ["ok", "ok", "skipped", "skipped"]
    assert all("the same command goes on from here" in row[2] for row in rows if row[1] == "skipped")
    assert finished("prepare", *how, "--out", out, path=path)[0] == 0
    assert results(out) == results(undisturbed)


def test_the_second_one_ends_at_once(tmp_path: Path, brains: Path) -> None:
    fake, out = tmp_path / "fake", tmp_path / "out"
    path = (fake_niimath(fake),)
    (fake / "hold").touch()
    process = started("prepare", brains, *STRIPPED, "--out", out, path=path)
    try:
        until(lambda: list(fake.glob("begun-*")), process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("stopping" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        (fake / "hold").unlink()
        process.kill()
        process.communicate()
    assert not list(out.glob("*.nii.gz"))
