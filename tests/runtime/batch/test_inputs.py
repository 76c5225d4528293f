"""Inputs of a batch: folders that cannot be listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from closed_folders import close
from hz_runtime.batch.executor import Event
from hz_runtime.batch.inputs import collect
from hz_runtime.batch.run import RunOptions, run_batch
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import UsageError
from small_scans import write_scan


def test_a_closed_folder_is_said_and_logged_and_the_rest_is_run(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("open", "closed"):
        write_scan(tmp_path / "in" / place / "sub-01_T1w.nii.gz")
    close(monkeypatch, tmp_path / "in" / "closed")
    heard: list[Event] = []
    report = run_batch(
        [tmp_path / "in"], load_bundle(tiny_bundle), tmp_path / "out", RunOptions(report=False), heard.append
    )
    line = "closed: the folder cannot be listed (Permission denied)"
    assert [scan.input for scan in report.scans] == ["open/sub-01_T1w.nii.gz"] and report.exit_code == 0
    assert line in [event.text for event in heard if event.kind == "note"]
    assert line in (tmp_path / "out" / "hz-run.log").read_text()


def test_where_nothing_else_is_there_the_refusal_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "closed").mkdir(parents=True)
    close(monkeypatch, tmp_path / "in" / "closed")
    with pytest.raises(UsageError, match=r"no scan found: in \(closed: the folder cannot be listed"):
        collect([tmp_path / "in"], tmp_path / "out")
