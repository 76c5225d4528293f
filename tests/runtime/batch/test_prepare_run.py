"""A run of hz-prepare as a library calls it: its order, its events and how it ends. No head is prepared."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from closed_folders import close
from hz_runtime.batch import prepare_run
from hz_runtime.batch.executor import Event
from hz_runtime.batch.head_folder import HeadFolder
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.prepare_run import PrepareOptions, PrepareReport, prepare_batch
from hz_runtime.errors import UsageError
from hz_runtime.preparation.preparer import Preparer
from hz_runtime.preparation.template import Template
from hz_runtime.results.scan_result import ScanResult


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three heads, of which the second fails, "prepared" at once; and room for eight at a time."""

    class Stub:
        template = Template.__new__(Template)

    object.__setattr__(Stub.template, "name", "MNI152")

    def prepare(_: HeadFolder, scan: InputScan) -> ScanResult:
        if scan.name == "b":
            gates = ({"gate": "slice thickness", "passed": False, "value": 4.8, "limits": [0, 3]},)
            return ScanResult(scan.label, scan.name, "failed", "too\nthick", gates=gates)
        return ScanResult(scan.label, scan.name, "ok", outputs=(f"{scan.name}.nii.gz",))

    monkeypatch.setattr(Preparer, "opened", classmethod(lambda *_: Stub()))
    monkeypatch.setattr(HeadFolder, "prepare", prepare)
    monkeypatch.setattr(prepare_run, "usable_cpus", lambda: 8)
    folder = tmp_path / "raw"
    (folder / "closed").mkdir(parents=True)
    for name in "cba":
        (folder / f"{name}.nii").touch()
    return folder


def test_results_are_in_the_order_of_the_inputs_and_events_count_them(heads: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    report = prepare_batch([heads], tmp_path / "out", on_event=events.append)
    assert [(scan.name, scan.status) for scan in report.scans] == [("a", "ok"), ("b", "failed"), ("c", "ok")]
    assert report.summary() == "3 scans: 2 ok, 1 failed" and report.exit_code == 3
    assert report.brains == "*_space-MNI152_res-2_desc-brain_T1w.nii.gz"
    assert (events[0].kind, events[0].text, events[0].total) == (
        "start", "6 degrees of freedom, 3 at a time", 3
    )  # fmt: skip
    assert [(event.kind, event.done, event.total) for event in events[1:]] == [
        ("scan", n, 3) for n in (1, 2, 3)
    ]
    rows = [line.split("\t") for line in (tmp_path / "out" / "preparation.tsv").read_text().splitlines()]
    assert [row[:4] for row in rows] == [
        ["input", "status", "reason", "failed_gates"],
        ["a.nii", "ok", "n/a", "n/a"],
        ["b.nii", "failed", "too thick", "slice thickness"],
        ["c.nii", "ok", "n/a", "n/a"],
    ]
    assert rows[2][rows[0].index("slice_thickness")] == "4.8"


def test_as_many_at_a_time_as_cpus_and_no_more_than_four(
    heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPUs are those of the process, not of the machine; what is asked for wins."""
    for name in "def":
        (heads / f"{name}.nii").touch()

    def at_a_time(options: PrepareOptions | None = None) -> str:
        events: list[Event] = []
        prepare_batch([heads], tmp_path / "out", options, events.append)
        return events[0].text.split(", ")[1]

    assert at_a_time() == "4 at a time" and at_a_time(PrepareOptions(workers=5)) == "5 at a time"
    monkeypatch.setattr(prepare_run, "usable_cpus", lambda: 2)
    assert at_a_time() == "2 at a time"
    with pytest.raises(UsageError, match="workers is 0"):
        PrepareOptions(workers=0)


def test_a_run_that_is_stopped_says_what_it_did_not_reach(heads: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    report = prepare_batch([heads], tmp_path / "out", stop=stop)
    assert report.summary() == "3 scans: 3 not reached" and report.exit_code == 130
    assert "skipped" in (tmp_path / "out" / "preparation.tsv").read_text()


def test_a_closed_folder_is_said_and_logged(
    heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(monkeypatch, heads / "closed")
    events: list[Event] = []
    prepare_batch([heads], tmp_path / "out", on_event=events.append)
    line = "closed: the folder cannot be listed (Permission denied)"
    assert [event.text for event in events if event.kind == "note"] == [line]
    assert line in (tmp_path / "out" / "hz-prepare.log").read_text()


@pytest.mark.parametrize(
    ("status", "recorded", "interrupted", "code", "line"),
    [
        ("ok", "", False, 0, "1 scan: 1 ok"),
        ("skipped", "ok", False, 0, "1 scan: 1 done before"),
        ("failed", "", False, 3, "1 scan: 1 failed"),
        ("failed", "", True, 130, "1 scan: 1 failed"),
    ],
)
def test_how_a_run_ends(status: str, recorded: str, interrupted: bool, code: int, line: str) -> None:
    scan = ScanResult("a.nii", "a", status, recorded=recorded)  # type: ignore[arg-type]
    report = PrepareReport(Path(), (scan,), "", interrupted)
    assert (report.exit_code, report.summary()) == (code, line)
