"""What a run says of itself in one line."""

from __future__ import annotations

from hz_runtime.results.run_report import counted
from hz_runtime.results.scan_result import DONE_BEFORE, NOT_REACHED, ScanResult


def test_what_was_not_reached_is_not_what_was_done_before() -> None:
    scans = [
        ScanResult("a.nii", "a", "ok"),
        ScanResult("b.nii", "b", "skipped", DONE_BEFORE),
        ScanResult("c.nii", "c", "skipped", NOT_REACHED),
        ScanResult("d.nii", "d", "skipped", NOT_REACHED),
    ]
    assert counted(scans) == "4 scans: 1 ok, 1 skipped, 2 not reached"
    assert counted(scans[:1]) == "1 scan: 1 ok" and counted([]) == "0 scans: -"
