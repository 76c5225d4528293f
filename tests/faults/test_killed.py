"""kill -9: of a whole batch at any moment, and of the programs that it starts."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from processes import fake_niimath, finished, started, until, whole_records
from small_scans import results, write_scans

pytestmark = pytest.mark.requirement("whole-or-not")


STRIPPED = ("--brain-mask", "none", "--plain")


def leftovers(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name.endswith(".tmp")]


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, tiny_bundle: Path) -> None:
    write_scans(tmp_path / "in", 12)
    out, whole = tmp_path / "out", tmp_path / "whole"
    how = (tmp_path / "in", "--model", tiny_bundle, "--space", "both", "--backend", "onnxruntime")
    assert finished("run", *how, "--out", whole)[0] == 0
    moments, done = random.Random(20231106), 0
    for _ in range(3):
        process = started("run", *how, "--out", out)
        try:
            # At a random moment after it got further; progress is seen, not timed.
            goal = done + moments.randint(1, 2)
            until(lambda goal=goal: len(list(out.glob("*_desc-harmonized_T1w.json"))) >= 2 * goal, process)
            time.sleep(moments.random() * 0.05)
        finally:
            process.kill()
            process.communicate()
        done = whole_records(out)
    code, said, _ = finished("run", *how, "--out", out)
    assert code == 0
    assert " skipped" in said and "failed" not in said  # finished work was kept
    assert results(out) == results(whole)
    assert whole_records(out) == 12
    assert not leftovers(out)


def test_a_killed_preparation_ends_as_an_undisturbed_one(
    tmp_path: Path, brains: Path, undisturbed: Path
) -> None:
    path, out = (fake_niimath(tmp_path / "fake"),), tmp_path / "out"
    process = started("prepare", brains, "--out", out, *STRIPPED, "--workers", 2, path=path)
    try:
        until(lambda: list(out.glob("*_desc-preparation.json")), process)
    finally:
        process.kill()
        process.communicate()
    done = whole_records(out)
    assert 1 <= done < 4
    code, said, _ = finished("prepare", brains, "--out", out, *STRIPPED, path=path)
    assert code == 0
    assert f"{done} done before" in said
    assert results(out) == results(undisturbed)
    assert not leftovers(out)


def test_a_killed_program_costs_one_scan_at_most(tmp_path: Path, brains: Path) -> None:
    fake, out = tmp_path / "fake", tmp_path / "out"
    path = (fake_niimath(fake),)
    (fake / "hold").touch()
    process = started("prepare", brains, "--out", out, *STRIPPED, "--workers", 1, path=path)
    until(lambda: list(fake.glob("begun-*")), process)
    (begun,) = fake.glob("begun-*")  # N4 of the first scan, for whose registration no program is needed
    os.kill(int(begun.name.partition("-")[2]), signal.SIGKILL)
    (fake / "hold").unlink()
    said, told = process.communicate()
    assert process.returncode == 3
    assert "4 scans: 3 ok, 1 failed" in said
    assert "N4 was ended from outside (niimath, signal 9). Most often memory ran out" in said
    assert "Traceback" not in said + told
    assert whole_records(out) == 4  # a refusal is recorded, too
    code, said, _ = finished("prepare", brains, "--out", out, *STRIPPED, path=path)
    assert code == 0
    assert "1 ok, 3 done before" in said
