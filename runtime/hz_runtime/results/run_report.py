"""A finished run: what run.json holds, and how the command ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hz_runtime.results.scan_result import ScanResult
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
        counts = self.counts
        parts = [f"{counts[s]} {s}" for s in ("ok", "flagged", "skipped", "failed") if counts[s]]
        total = len(self.scans)
        text = f"{total} scan{'' if total == 1 else 's'}: {', '.join(parts)}"
        if self.unchanged:
            return f"{text}; {NOTHING_WRITTEN}"
        text = f"{text} in {self.run['seconds']:.1f} s"
        return f"interrupted; {text}" if self.interrupted else text


def count(scans: Sequence[ScanResult]) -> dict[str, int]:
    counts = Counter(s.status for s in scans)
    return {status: counts[status] for status in ("ok", "flagged", "failed", "skipped")}


def dataset_description() -> dict[str, Any]:
    """dataset_description.json of a BIDS derivative."""
    return {
        "Name": "hz: harmonized T1-weighted scans and predictions",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "hz", "Version": hz_version()}],
    }
