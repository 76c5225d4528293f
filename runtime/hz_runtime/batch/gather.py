"""One table and one report of all shards, as a serial run of their scans leaves them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.journal import DONE, status_of
from hz_runtime.batch.log import LOG_NAME
from hz_runtime.batch.run_files import write_run_files
from hz_runtime.batch.run_metadata import timings
from hz_runtime.batch.shard_folder import ShardFolder, header
from hz_runtime.batch.status import Source, latest, sources
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import holds, write_changed
from hz_runtime.io.json_text import to_json
from hz_runtime.results.run_report import RunReport, count
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

# Of the options, those that results must share to stand in one table.
_SHARED = ("space", "dtype", "to", "precision", "prepare", "report")


def gather(out: Path) -> RunReport:
    """Write run.json, the table, the report and the log of all shards of the folder `out`.

    A scan is shown as it was when it was done, by whichever job; one that no job has done is "not reached".
    Times are the sum of those of the jobs that ended. The same again writes nothing.
    Raises UsageError where nothing was divided there, a job is at work, or shards were run another way.
    """
    with locked(out):
        place = ShardFolder(out)
        plan = place.plan()
        if plan is None:
            raise UsageError(
                f"{out.name} was not divided into shards: there is nothing to gather.",
                "Its own run has written its report; divided it is with  hz-run --shard 1/12",
            )
        found = sources(out)
        words = latest(found)
        given = [words[name] for _, name in plan.scans if name in words]
        _refuse_mixture(given)
        if not given:
            raise UsageError("no shard has done any scan yet.", "See  hz-run status OUT")
        entries = [_entry(label, name, words) for label, name in plan.scans]
        scans = tuple(ScanResult.from_dict(entry) for entry in entries)
        run = _run([source for source in found if source.shard is not None], entries, scans)
        report = bool((run.get("options") or {}).get("report"))
        log = b"".join(place.log(shard).read_bytes() for shard in place.shards() if place.log(shard).exists())
        if holds(out / "run.json", to_json(run)) and _whole(out, report):
            return RunReport(out, scans, run, run["interrupted"], unchanged=True)
        problems = write_run_files(out, scans, run, report)
        write_changed(out / LOG_NAME, log)
    return RunReport(out, scans, run, run["interrupted"], tuple(problems))


def _entry(label: str, name: str, words: Mapping[str, tuple[Source, Mapping[str, Any]]]) -> dict[str, Any]:
    """A scan as run.json of a serial run has it: as what it was done, not as taken over from a run before."""
    if name not in words:
        return ScanResult(label, name, "skipped", NOT_REACHED).to_dict()
    scan = words[name][1]
    status = status_of(scan)
    reason = "; ".join(scan["flags"]) if status in DONE else scan["reason"]
    return {**scan, "status": status, "recorded": "", "reason": reason}


def _run(
    found: Sequence[Source], entries: Sequence[Mapping[str, Any]], scans: Sequence[ScanResult]
) -> dict[str, Any]:
    """The object of run.json: that of the shard that was run first, for all."""
    seconds = round(sum(float((source.noted.end or {}).get("seconds", 0)) for source in found), 3)
    return {
        **header(found[0].noted.run),
        "seconds": seconds,
        "interrupted": any(scan.reason == NOT_REACHED for scan in scans),
        "timings": timings(scans, seconds),
        "counts": count(scans),
        "scans": list(entries),
    }


def _refuse_mixture(given: Iterable[tuple[Source, Mapping[str, Any]]]) -> None:
    ways: dict[str, Source] = {}
    for source in {id(source): source for source, _ in given}.values():
        run = source.noted.run
        options = run.get("options") or {}
        way = {"bundle": (run.get("bundle") or {}).get("id"), **{key: options.get(key) for key in _SHARED}}
        ways.setdefault(json.dumps(way, sort_keys=True), source)
    if len(ways) > 1:
        names = " and ".join(str(source.shard or "the whole run") for source in list(ways.values())[:2])
        raise UsageError(
            f"{names} were run with different bundles or options: not comparable.",
            "Run all shards again with one --model and the same options.",
        )


def _whole(out: Path, report: bool) -> bool:
    """Whether the other files that a run leaves are there."""
    names = ("predictions.tsv", "dataset_description.json", LOG_NAME, *(("report.html",) if report else ()))
    return all((out / name).exists() for name in names)
