"""The group level: what all participants' records say, in one table and one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hz_runtime.bids.derivatives import WORK_NAME, dictionary
from hz_runtime.bids.participant import Level
from hz_runtime.bids.record import Run, read_run, results, table, ways
from hz_runtime.bundle.age_calibration import same_age_flags
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import shared_file
from hz_runtime.io.json_text import to_json
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.run_report import count
from hz_runtime.results.scan_result import ScanResult


def run_group(out: Path, subjects: Sequence[str] = (), work: Path | None = None) -> Level:
    """Write the tables and pages of all participants of a derivative data set; returns what is in them.

    These are predictions.tsv, predictions.json, report.html and, of three scans or more, group.html. Those
    that are as they should be are left alone.
    subjects : labels of the participants to gather; empty: all.
    work : the participant level's; participants whose folder is gone have no pictures.
    Raises UsageError where no participant is done, one asked for is not, or they cannot be compared.
    """
    runs = _runs(out, {label.removeprefix("sub-") for label in subjects})
    _refuse_mixture(runs)
    scans = [(name, scan) for name, run in runs.items() for scan in results(run["scans"])]
    found = tuple(scan for _, scan in scans)
    first = next(iter(runs.values()))  # made as the others are, so that all have the same columns
    lines = table(first, found).decode().splitlines()
    rows = ["participant_id\tsession_id\t" + lines[0]]
    for (name, _), line in zip(scans, lines[1:], strict=True):
        subject, _, session = name.partition("_")
        rows.append(f"{subject}\t{session or 'n/a'}\t{line}")
    columns = dictionary(rows[0].split("\t"), RunOutputs.of(first))
    aged = [(scan.prediction.age, scan.age) for scan in found if scan.prediction.age is not None]
    same = same_age_flags([age for age, _ in aged], [age for _, age in aged])
    for text in same:
        for column in columns.keys() & {"age_raw", "age_corrected"}:
            columns[column] = {**columns[column], "Remark": text}
    changed = [
        shared_file(out / "predictions.tsv", ("\n".join(rows) + "\n").encode()),
        shared_file(out / "predictions.json", to_json(columns)),
        _write_pages(out, runs, found, work or out / WORK_NAME),
    ]
    return Level(found, notes=same, unchanged=not any(changed))


def _runs(out: Path, subjects: set[str]) -> dict[str, Run]:
    """{unit's name: its run.json}, in the order of the names."""
    found: dict[str, Run] = {}
    for path in sorted((out / "logs").glob("sub-*_run.json")):
        name = path.name.removesuffix("_run.json")
        if subjects and name.split("_")[0].removeprefix("sub-") not in subjects:
            continue
        found[name] = read_run(path)
    missing = subjects - {name.split("_")[0].removeprefix("sub-") for name in found}
    if missing or not found:
        who = ", ".join(f"sub-{label}" for label in sorted(missing)) or "any participant"
        raise UsageError(f"{out.name} holds no results of {who}.", "First:  hz-bids BIDS_DIR OUT participant")
    return found


def _refuse_mixture(runs: Mapping[str, Run]) -> None:
    first: dict[str, str] = {}  # of each way to make results, who was made so
    for name, run in runs.items():
        for way in ways(run):
            first.setdefault(json.dumps(way, sort_keys=True), name)
    if len(first) > 1:
        names = ", ".join(dict.fromkeys(first.values()))
        raise UsageError(
            f"participants were run with different bundles or options ({names}): not comparable.",
            "Run the others again with one --model and the same options, or name some:  --participant-label",
        )


def _write_pages(out: Path, runs: Mapping[str, Run], found: Sequence[ScanResult], work: Path) -> bool:
    from hz_runtime.report import figures_of, write_pages

    scans = [
        {**scan, "figure": scan.get("figure") and f"{name}/{scan['figure']}"}
        for name, run in runs.items()
        for scan in run["scans"]
    ]
    first = next(iter(runs.values()))
    whole = {
        **{key: value for key, value in first.items() if key not in ("timings", "started")},
        "seconds": round(sum(float(run.get("seconds") or 0) for run in runs.values()), 3),
        "interrupted": any(run.get("interrupted") for run in runs.values()),
        "counts": count(found),
        "scans": scans,
    }
    return write_pages(out, whole, figures_of(work, scans))
