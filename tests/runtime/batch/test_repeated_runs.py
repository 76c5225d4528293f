"""A finished run again writes nothing where nothing has changed, and all as ever where something has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.log import LOG_NAME
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.results.run_report import NOTHING_WRITTEN, RunReport
from small_scans import write_scan, write_scans
from snapshots import snapshot

RUN = RunOptions(backend="onnxruntime-cpu", threads=1)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three heads, and a file that is none."""
    write_scans(tmp_path / "in", 3)
    (tmp_path / "in" / "sub-09_T1w.nii.gz").write_bytes(b"\x1f\x8b nothing")
    return tmp_path / "in"


Run = Callable[..., RunReport]


@pytest.fixture
def run(scans: Path, bundle: Bundle, tmp_path: Path) -> Run:
    """Run all scans into out/; options as those of `RunOptions`."""

    def again(**options: Any) -> RunReport:
        return run_batch([scans], bundle, tmp_path / "out", RunOptions(**{**vars(RUN), **options}))

    return again


def test_nothing_is_written_where_nothing_has_changed(run: Run, tmp_path: Path) -> None:
    """A scan that failed is tried again, and fails again."""
    first = run()
    assert not first.unchanged and (tmp_path / "out" / "group.html").exists()
    before = snapshot(tmp_path / "out")
    again = run()
    assert snapshot(tmp_path / "out") == before
    assert again.unchanged and again.run == json.loads((tmp_path / "out" / "run.json").read_text())
    assert again.summary() == f"4 scans: 3 skipped, 1 failed; {NOTHING_WRITTEN}" and again.exit_code == 3
    more = run(threads=2, batch=2, backend="auto")  # how it would have been made
    assert more.unchanged and snapshot(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["run.json", "predictions.tsv", "report.html", "dataset_description.json"])
def test_a_file_that_is_gone_or_other_is_written(run: Run, tmp_path: Path, name: str) -> None:
    run()
    path, log = tmp_path / "out" / name, tmp_path / "out" / LOG_NAME
    path.unlink()
    lines = len(log.read_text().splitlines())
    assert not run().unchanged and path.exists()
    assert len(log.read_text().splitlines()) > lines  # the lines that had waited
    assert run().unchanged
    path.write_bytes(b"{}")
    assert not run().unchanged and path.read_bytes() != b"{}"


@pytest.mark.parametrize(
    "change", [{"report": False}, {"ages": KnownAges({"sub-01_T1w.nii.gz": 3.0})}, {"space": "both"}]
)
def test_what_has_changed_is_written(run: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    run()
    before = snapshot(tmp_path / "out")
    assert not run(**change).unchanged
    assert snapshot(tmp_path / "out")["run.json"] != before["run.json"]
    assert run(**change).unchanged


def test_a_new_scan_is_written(run: Run, scans: Path, tmp_path: Path) -> None:
    run()
    before = snapshot(tmp_path / "out")
    write_scan(scans / "sub-05_T1w.nii.gz", 5)
    report, after = run(), snapshot(tmp_path / "out")
    assert report.counts == {"ok": 1, "flagged": 0, "failed": 1, "skipped": 3}
    assert "sub-05_desc-harmonized_T1w.nii.gz" in after
    assert {name for name in before if before[name] != after[name]} >= {"run.json", "report.html", LOG_NAME}
    assert before["sub-01_desc-harmonized_T1w.json"] == after["sub-01_desc-harmonized_T1w.json"]
    assert run().unchanged


def test_a_run_that_breaks_off_leaves_its_lines(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    log = tmp_path / "out" / LOG_NAME
    before = log.read_text()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("hz_runtime.batch.folder_run.run_metadata", broken)
    with pytest.raises(RuntimeError):
        run()
    assert "4 scans, bundle" in log.read_text().removeprefix(before)


def test_a_lock_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As git-annex keeps a file that was committed."""
    with locked(tmp_path):
        pass
    real, before = os.open, snapshot(tmp_path)

    def closed(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_RDWR and not flags & os.O_EXCL:  # which says first that there is one
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", closed)
    with locked(tmp_path):
        pass
    assert snapshot(tmp_path) == before
