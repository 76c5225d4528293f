"""The group level: what all participants' records say, in one table and one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hz_runtime.bids.derivatives import WORK_NAME, dictionary, shared_file
from hz_runtime.bids.participant import Level
from hz_runtime.errors import UsageError
from hz_runtime.results import ScanResult, count, predictions_tsv, to_json

_NAMES = {field.name for field in fields(ScanResult)}


def run_group(out: Path, subjects: Sequence[str] = (), work: Path | None = None) -> Level:
    """Write the tables and pages of all participants of a derivative data set; returns what is in them.

    These are predictions.tsv, predictions.json, report.html and, of three scans or more, group.html.
    subjects : labels of the participants to gather; empty: all.
    work : the participant level's; participants whose folder is gone have no pictures.
    Raises UsageError where no participant is done, one asked for is not, or they cannot be compared.
    """
    runs = _runs(out, {label.removeprefix("sub-") for label in subjects})
    _refuse_mixture(runs)
    scans = [(name, _scan(told)) for name, run in runs.items() for told in run["scans"]]
    results = tuple(scan for _, scan in scans)
    first = next(iter(runs.values()))  # of one bundle, so that all have the same columns
    diagnosis = first.get("diagnosis")
    intervals = (first.get("age") or {}).get("age_interval_coverage") is not None
    positive = diagnosis and str(diagnosis["positive"])
    lines = predictions_tsv(results, positive, intervals).decode().splitlines()
    rows = ["participant_id\tsession_id\t" + lines[0]]
    for (name, _), line in zip(scans, lines[1:], strict=True):
        subject, _, session = name.partition("_")
        rows.append(f"{subject}\t{session or 'n/a'}\t{line}")
    shared_file(out / "predictions.tsv", ("\n".join(rows) + "\n").encode())
    shared_file(out / "predictions.json", to_json(dictionary(rows[0].split("\t"))))
    _write_pages(out, runs, results, work or out / WORK_NAME)
    return Level(results)


def _runs(out: Path, subjects: set[str]) -> dict[str, Mapping[str, Any]]:
    """{unit's name: its run.json}, in the order of the names."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted((out / "logs").glob("sub-*_run.json")):
        name = path.name.removesuffix("_run.json")
        if subjects and name.split("_")[0].removeprefix("sub-") not in subjects:
            continue
        try:
            run = json.loads(path.read_bytes())
            if not isinstance(run["scans"], list):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path.name}: not a record that hz wrote.", f"Run the participant again:  {name}"
            ) from error
        found[name] = run
    missing = subjects - {name.split("_")[0].removeprefix("sub-") for name in found}
    if missing or not found:
        who = ", ".join(f"sub-{label}" for label in sorted(missing)) or "any participant"
        raise UsageError(f"{out.name} holds no results of {who}.", "First:  hz-bids BIDS_DIR OUT participant")
    return found


def _refuse_mixture(runs: Mapping[str, Mapping[str, Any]]) -> None:
    made_by: dict[str, str] = {}
    for name, run in runs.items():
        made_by.setdefault(str((run.get("bundle") or {}).get("id")), name)
    if len(made_by) > 1:
        raise UsageError(
            f"participants were run with different bundles ({', '.join(made_by.values())}): not comparable.",
            "Run the others again with one --model, or name some:  --participant-label",
        )


def _scan(told: Mapping[str, Any]) -> ScanResult:
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in told.items() if key in _NAMES
    }
    return ScanResult(**values)


def _write_pages(
    out: Path, runs: Mapping[str, Mapping[str, Any]], results: Sequence[ScanResult], work: Path
) -> None:
    from hz_runtime.report import figures_of, write_pages

    scans = [
        {**told, "figure": told.get("figure") and f"{name}/{told['figure']}"}
        for name, run in runs.items()
        for told in run["scans"]
    ]
    first = next(iter(runs.values()))
    whole = {
        **{key: value for key, value in first.items() if key not in ("timings", "started")},
        "seconds": round(sum(float(run.get("seconds") or 0) for run in runs.values()), 3),
        "interrupted": any(run.get("interrupted") for run in runs.values()),
        "counts": count(results),
        "scans": scans,
    }
    write_pages(out, whole, figures_of(work, scans))
