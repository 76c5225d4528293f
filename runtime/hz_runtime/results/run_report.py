"""A finished run: what run.json holds, and how the command ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hz_runtime.results.scan_result import NOT_REACHED, ScanResult
from hz_runtime.results.versions import hz_version

NOTHING_WRITTEN = "nothing has changed, nothing was written"


@dataclass(frozen=True)
class RunReport:
    """A finished run. `run` is the object that run.json holds; `problems` are result files that could
    not be written; `unchanged` says that all was as it should be before, and no file was written."""

    out: Path
    scans: tuple[ScanResult, ...]
    run: Mapping[str, Any]
    interrupted: bool = False
    problems: tuple[str, ...] = ()
    unchanged: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Number of scans by status; all four are always there."""
        return count(self.scans)

    @property
    def exit_code(self) -> int:
        """0 all done, 1 a result file could not be written, 3 some scans failed, 130 interrupted."""
        if self.interrupted:
            return 130
        if self.problems:
            return 1
        return 3 if self.counts["failed"] else 0

    def summary(self) -> str:
        """One line: how many of each, and how long."""
        text = counted(self.scans)
        if self.unchanged:
            return f"{text}; {NOTHING_WRITTEN}"
        text = f"{text} in {self.run['seconds']:.1f} s"
        return f"interrupted; {text}" if self.interrupted else text


def count(scans: Sequence[ScanResult]) -> dict[str, int]:
    counts = Counter(s.status for s in scans)
    return {status: counts[status] for status in ("ok", "flagged", "failed", "skipped")}


def counted(scans: Sequence[ScanResult]) -> str:
    """How many scans, and how many of each status, in words; those that were not reached are told from those
    that an earlier run has done."""
    counts = Counter("not reached" if s.reason == NOT_REACHED else s.status for s in scans)
    words = ("ok", "flagged", "skipped", "failed", "not reached")
    parts = ", ".join(f"{counts[word]} {word}" for word in words if counts[word]) or "-"
    return f"{len(scans)} scan{'' if len(scans) == 1 else 's'}: {parts}"


def dataset_description() -> dict[str, Any]:
    """dataset_description.json of a BIDS derivative."""
    return {
        "Name": "hz: harmonized T1-weighted scans and predictions",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "hz", "Version": hz_version()}],
    }
