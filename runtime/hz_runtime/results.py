"""What a run says about itself: one result a scan, the tables, run.json.

Nothing here holds an absolute path or the name of a machine.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "flagged", "failed", "skipped"]
STAGES = ("read", "prepare", "infer", "write")
STEPS = ("prepare.mask", "prepare.registration", "prepare.n4", "prepare.resampling")
NOT_REACHED = "not reached: the run was interrupted; the same command goes on from here"
DONE_BEFORE = "done before: same scan, bundle and options"
COLUMNS = ("input", "status", "age_raw", "age_corrected", "age", "brain_pad", "flags")
INTERVAL_COLUMNS = ("age_low", "age_high")  # after age_corrected, of bundles with a prediction interval
DIAGNOSIS_COLUMNS = ("diagnosis_probability", "probability_of")  # before flags, of bundles that diagnose


@dataclass(frozen=True)
class ScanResult:
    """What became of one scan: an object of run.json["scans"].

    input : its label, relative.  name : what its output names start with.
    status : ok; flagged (done, but look at `flags`); failed (see `reason`); skipped (an earlier run had
        done it and `outputs` are in place, or the run was interrupted before it and there are none).
    recorded : for a scan that an earlier run did, the status it got then; else empty.
    outputs, figure : names relative to the output folder.
    age_raw, age_corrected : predicted years; None without an age network or without correction.
    age_interval : lower and upper limit around the age shown (the corrected one where there is one), years;
        None where the bundle holds no interval.
    age : known age in years, where one was given.
    diagnosis_probability : of the bundle's positive label, 0 to 1; None without a diagnosis network.
    seconds : wall time by stage (read, prepare, infer, write), and by step of a raw head's preparation, as
        "prepare.registration".
    gates : verdicts of the gates of a raw head's preparation (`preparation.gates.Verdict.to_dict`).
    """

    input: str
    name: str
    status: Status
    reason: str = ""
    outputs: tuple[str, ...] = ()
    figure: str | None = None
    age_raw: float | None = None
    age_corrected: float | None = None
    age: float | None = None
    flags: tuple[str, ...] = ()
    sha256: str | None = None
    recorded: str = ""
    diagnosis_probability: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    gates: tuple[Mapping[str, Any], ...] = ()
    age_interval: tuple[float, float] | None = None

    @property
    def brain_pad(self) -> float | None:
        """Predicted minus known age, years (the corrected prediction where there is one)."""
        predicted = self.age_raw if self.age_corrected is None else self.age_corrected
        return None if predicted is None or self.age is None else predicted - self.age

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "input": self.input,
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "outputs": list(self.outputs),
            "figure": self.figure,
            "age_raw": self.age_raw,
            "age_corrected": self.age_corrected,
            "age_interval": None if self.age_interval is None else list(self.age_interval),
            "age": self.age,
            "brain_pad": self.brain_pad,
            "diagnosis_probability": self.diagnosis_probability,
            "flags": list(self.flags),
            "recorded": self.recorded,
            "sha256": self.sha256,
            "seconds": {key: round(self.seconds[key], 4) for key in STAGES + STEPS if key in self.seconds},
            "gates": [dict(gate) for gate in self.gates],
        }


@dataclass(frozen=True)
class RunReport:
    """A finished run. `run` is the object that run.json holds; `problems` are result files that could
    not be written."""

    out: Path
    scans: tuple[ScanResult, ...]
    run: Mapping[str, Any]
    interrupted: bool = False
    problems: tuple[str, ...] = ()

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
        text = f"{total} scan{'' if total == 1 else 's'}: {', '.join(parts)} in {self.run['seconds']:.1f} s"
        return f"interrupted; {text}" if self.interrupted else text


def count(scans: Sequence[ScanResult]) -> dict[str, int]:
    counts = Counter(s.status for s in scans)
    return {status: counts[status] for status in ("ok", "flagged", "failed", "skipped")}


def predictions_tsv(
    scans: Sequence[ScanResult], positive: str | None = None, intervals: bool = False
) -> bytes:
    """predictions.tsv, one row a scan in input order, n/a where there is no value.

    positive : the label whose probability a diagnosis network gives; None without one, and no such columns.
    intervals : whether the bundle holds a prediction interval of the age; else there are no such columns.

    The status of a scan that an earlier run did is the one it got then, so that a resumed run's table
    equals an undisturbed one's.
    """
    limits = INTERVAL_COLUMNS if intervals else ()
    more = DIAGNOSIS_COLUMNS if positive is not None else ()
    lines = ["\t".join([*COLUMNS[:4], *limits, *COLUMNS[4:-1], *more, COLUMNS[-1]])]
    for scan in scans:
        ends = (scan.age_interval or (None, None)) if intervals else ()
        values = [scan.age_raw, scan.age_corrected, *ends, scan.age, scan.brain_pad]
        numbers = ["n/a" if v is None else f"{v:.2f}" for v in values]
        if positive is not None:
            probability = scan.diagnosis_probability
            numbers += ["n/a" if probability is None else f"{probability:.4f}", " ".join(positive.split())]
        flags = "; ".join(scan.flags) or "n/a"
        lines.append("\t".join([scan.input, scan.recorded or scan.status, *numbers, " ".join(flags.split())]))
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def to_json(value: Mapping[str, Any]) -> bytes:
    """Readable JSON bytes; refuses NaN, which JSON cannot say."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def hz_version() -> str:
    """Version of this package."""
    import hz_runtime

    return str(getattr(hz_runtime, "__version__", "unknown"))


def versions() -> dict[str, str]:
    """Versions that shape a result, for run.json."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"hz": hz_version(), "python": platform.python_version()}
    for package in ("numpy", "isal"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return {**found, "platform": f"{sys.platform} {platform.machine()}"}


def dataset_description() -> dict[str, Any]:
    """dataset_description.json of a BIDS derivative."""
    return {
        "Name": "hz: harmonized T1-weighted scans and predictions",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "hz", "Version": hz_version()}],
    }
