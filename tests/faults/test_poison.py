"""One scan of fifty that is damaged costs that scan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from processes import finished, whole_records
from small_scans import results, write_scans

pytestmark = pytest.mark.requirement("one-scan")


def test_one_of_fifty(tmp_path: Path, tiny_bundle: Path) -> None:
    scans = write_scans(tmp_path / "in", 50)
    data = bytearray(scans[31].read_bytes())
    data[len(data) // 2] ^= 0x40
    scans[31].write_bytes(data)
    how = ("--model", tiny_bundle, "--no-report", "--plain")
    code, said, told = finished("run", tmp_path / "in", *how, "--out", tmp_path / "out")
    assert code == 3
    lines = said.splitlines()
    (failed,) = [line for line in lines if "  failed  " in line]
    assert f"{scans[31].name}  failed  " in failed and "damaged" in failed
    assert lines[-1].startswith("50 scans: ") and " 1 failed in " in lines[-1]
    assert "Traceback" not in said + told
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["counts"]["failed"] == 1 and run["counts"]["ok"] + run["counts"]["flagged"] == 49
    assert whole_records(tmp_path / "out") == 49
    rows = (tmp_path / "out" / "predictions.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows[1:]] == [scan.name for scan in scans]
    assert finished("run", *scans[30:33], *how, "--out", tmp_path / "few")[0] == 3
    few = results(tmp_path / "few")
    many = results(tmp_path / "out")
    assert all(many[name] == few[name] for name in few if name != "predictions.tsv")
