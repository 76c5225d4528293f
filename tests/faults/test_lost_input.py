"""An input that is gone for a while, as on a share that is not mounted, costs no earlier result."""

from __future__ import annotations

import shutil
from pathlib import Path

from processes import fake_niimath, finished
from small_scans import results


def test_an_earlier_preparation_stays(tmp_path: Path, brains: Path, undisturbed: Path) -> None:
    scans = [Path(shutil.copy(scan, tmp_path)) for scan in sorted(brains.iterdir())]
    out = shutil.copytree(undisturbed, tmp_path / "out")
    how = (*scans, "--out", out, "--brain-mask", "none", "--plain")
    path = (fake_niimath(tmp_path / "fake"),)
    gone = scans[1].rename(tmp_path / "gone")
    code, said, _ = finished("prepare", *how, path=path)
    assert code == 3
    assert f"{scans[1].name}  failed  no such file" in said
    assert "3 done before, 1 failed" in said
    gone.rename(scans[1])
    code, said, _ = finished("prepare", *how, path=path)
    assert code == 0 and "4 scans: 4 done before" in said
    assert results(out) == results(undisturbed)
