"""A disk that fills up: what fits is whole, what does not is told, and the same command ends the work."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import load_bundle
from hz_runtime.io import atomic
from hz_runtime.results.record import read_record
from processes import finished, whole_records
from small_scans import results, write_scans


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 700 kB; `resized` makes room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "hz-test", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a small disk cannot be mounted here (that takes root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resized(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def whole_or_absent(out: Path) -> None:
    """Every volume belongs to a record that holds its sha256, and there is no temporary."""
    whole_records(out)
    records = [record for path in out.glob("*.json") if (record := read_record(path))]
    recorded = {name for record in records for name in record.outputs}
    assert {path.name for path in out.glob("*.nii.gz")} == {n for n in recorded if n.endswith(".nii.gz")}
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


def test_a_disk_that_fills_up_in_a_run(tmp_path: Path, disk: Path, tiny_bundle: Path) -> None:
    write_scans(tmp_path / "in", 8)
    how = (tmp_path / "in", "--model", tiny_bundle, "--plain")
    code, said, told = finished("run", *how, "--out", disk / "out")
    assert code in (1, 3)  # 1 where run.json did not fit either
    failed = [line for line in said.splitlines() if "  failed  " in line]
    assert 0 < len(failed) < 8
    assert all("the disk is full (No space left on device). Make room" in line for line in failed)
    assert "Traceback" not in said + told
    assert whole_records(disk / "out") == 8 - len(failed)
    whole_or_absent(disk / "out")
    resized(disk, "50m")
    assert finished("run", *how, "--out", disk / "out")[0] == 0
    assert finished("run", *how, "--out", tmp_path / "whole")[0] == 0
    assert results(disk / "out") == results(tmp_path / "whole")


def test_temporary_files_that_do_not_fit(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("niimath")
    from small_heads import made_head, write_head

    scan = write_head(tmp_path / "sub-01_T1w.nii.gz", *made_head()[::2])
    monkeypatch.setenv("TMPDIR", str(disk))
    code, said, told = finished("prepare", scan, "--out", tmp_path / "out", "--plain")
    assert code == 3
    assert "disk is full" in said and "TMPDIR" in said
    assert "Traceback" not in said + told
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    assert not list(disk.iterdir())


class Disk:
    """Stands for `os` where hz writes its files, and refuses from the call of `what` after `room` on."""

    def __init__(self, what: str, room: int) -> None:
        self.what, self.room = what, room

    def __getattr__(self, name: str) -> Any:
        return self.call if name == self.what else getattr(os, name)

    def call(self, *arguments: Any) -> Any:
        self.room -= 1
        if self.room >= 0:
            return getattr(os, self.what)(*arguments)
        if self.what == "fdopen":
            with os.fdopen(*arguments) as stream:
                stream.write(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["fdopen", "fsync", "replace"])
@pytest.mark.parametrize("room", [0, 2, 5, 11])
def test_no_room_at_any_moment_of_a_run(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, what: str, room: int
) -> None:
    scans, bundle = write_scans(tmp_path / "in", 3), load_bundle(tiny_bundle)
    options = RunOptions(threads=1, backend="onnxruntime", space="both")
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "os", Disk(what, room))
        report = run_batch(scans, bundle, tmp_path / "out", options)
    assert report.exit_code == 1  # the tables could not be written
    assert all("the disk is full" in problem for problem in report.problems)
    reasons = [scan.reason for scan in report.scans if scan.status == "failed"]
    assert reasons and all("the disk is full" in reason for reason in reasons)
    whole_or_absent(tmp_path / "out")
    assert run_batch(scans, bundle, tmp_path / "out", options).exit_code == 0
    run_batch(scans, bundle, tmp_path / "whole", options)
    assert results(tmp_path / "out") == results(tmp_path / "whole")
