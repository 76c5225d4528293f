"""The record of a unit, logs/NAME_run.json: the run.json of its last run, and what earlier ones left to it.

A scan that an earlier run did, and the last one did not reach or was not asked for, keeps its entry, which
then says in "made_by" how it was made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hz_runtime.errors import UsageError
from hz_runtime.io.annex import require_fetched
from hz_runtime.io.json_text import OTHER_FORM
from hz_runtime.io.volume import is_scan_name
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.predictions_tsv import predictions_tsv
from hz_runtime.results.run_report import count
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

Run = Mapping[str, Any]
Scan = Mapping[str, Any]


def read_run(record: Path) -> Run:
    """The object of a record. Raises UsageError where it is missing, not fetched or not one that hz wrote."""
    require_fetched(record)
    try:
        run = json.loads(record.read_bytes())
        results(run["scans"])
        outputs(run["scans"])
        ways(run)
    except (OSError, *OTHER_FORM) as error:
        raise UsageError(
            f"{record.name}: not a record that hz wrote.",
            f"Run the participant again:  {record.name.removesuffix('_run.json')}",
        ) from error
    return dict(run)


def results(scans: Iterable[Scan]) -> tuple[ScanResult, ...]:
    """The scans of a record as results."""
    return tuple(ScanResult.from_dict(scan) for scan in scans)


def outputs(scans: Iterable[Scan]) -> set[str]:
    """Names of the files of these scans, in anat/."""
    return {Path(name).name for scan in scans for name in scan["outputs"]}


def made_by(run: Run, scan: Scan | None = None) -> dict[str, Any]:
    """What must be equal for results to be comparable; of a scan that was only kept, its own."""
    if scan and "made_by" in scan:
        return dict(scan["made_by"])
    options = run.get("options") or {}
    prepare = options.get("prepare")
    if prepare and is_scan_name(str(prepare.get("brain_mask"))):
        prepare = {**prepare, "brain_mask": "file"}  # every scan has its own
    return {
        "bundle": (run.get("bundle") or {}).get("id"),
        "to": options.get("to"),
        "prepare": prepare,
        "precision": options.get("precision"),
    }


def ways(run: Run) -> list[dict[str, Any]]:
    """How the results of a record were made: by its run, and before that where they were only kept."""
    return [made_by(run), *(made_by(run, scan) for scan in run["scans"] if scan["outputs"])]


def comparable(run: Run) -> list[Scan]:
    """The scans of a record without those that were made another way."""
    own = made_by(run)
    return [scan for scan in run["scans"] if not scan["outputs"] or made_by(run, scan) == own]


def table(run: Run, scans: Sequence[ScanResult]) -> bytes:
    """predictions.tsv with the columns of a run."""
    return predictions_tsv(scans, RunOutputs.of(run))


def merged(run: Run, earlier: Run, anat: Path) -> dict[str, Any]:
    """`run` with the scans of an `earlier` one that it did not reach, or was not asked for.

    anat : the raw scans' folder; what is no longer in it goes.
    """
    asked = {scan["name"] for scan in run["scans"]}
    reached = {scan["name"] for scan in run["scans"] if scan["reason"] != NOT_REACHED}
    try:
        there = set(os.listdir(anat))
    except OSError:  # a share that is gone says nothing of the scans on it
        there = {scan["input"] for scan in earlier["scans"]}
    kept = {
        scan["name"]: {**scan, "made_by": made_by(earlier, scan)}
        for scan in earlier["scans"]
        if scan["name"] not in reached and (scan["name"] in asked or scan["input"] in there)
    }
    scans = [kept.pop(scan["name"], scan) for scan in run["scans"]]
    scans = sorted([*scans, *kept.values()], key=lambda scan: str(scan["input"]))
    return {**run, "counts": count(results(scans)), "scans": scans}
