"""A run's own files: run.json, predictions.tsv, dataset_description.json and the pages of its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hz_runtime.batch.failures import scrub
from hz_runtime.errors import HzError
from hz_runtime.io.atomic import atomic_write_bytes, holds
from hz_runtime.io.json_text import to_json
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.predictions_tsv import predictions_tsv
from hz_runtime.results.run_report import dataset_description
from hz_runtime.results.scan_result import ScanResult

# What run.json says about how and when its results were made, which a run that makes none does not alter.
_HOW = ("started", "seconds", "timings", "counts", "versions", "backend")
_HOW_OPTIONS = ("backend", "require", "build", "graphs", "threads", "batch", "max_voxels", "overwrite")


def write_run_files(
    out: Path, scans: Sequence[ScanResult], run: Mapping[str, Any], report: bool
) -> list[str]:
    """Write the run's own files; what cannot be written is returned, one line each.

    run : the object of run.json.  report : whether there are to be pages; else those of before go.
    """
    problems: list[str] = []

    @contextmanager
    def attempt(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            text = error.one_line if isinstance(error, HzError) else f"{type(error).__name__}: {error}"
            problems.append(scrub(f"{name} could not be written: {text}", None, out))

    for name, data in _tables(scans, run).items():
        with attempt(name):
            atomic_write_bytes(out / name, data)
    with attempt("run.json"):
        atomic_write_bytes(out / "run.json", to_json(run))
    if report:
        with attempt("report.html"):
            from hz_runtime.report import figures_of, write_pages

            write_pages(out, run, figures_of(out, run["scans"]))
    else:
        from hz_runtime.report import remove_pages

        remove_pages(out)
    return problems


def unchanged_run(
    out: Path, scans: Sequence[ScanResult], run: Mapping[str, Any], report: bool
) -> dict[str, Any] | None:
    """The object of the run.json in `out` where a run that made no result would only repeat it, else None.

    Every scan was done before, or fails as it failed then, and all of the run's own files are as that
    run.json has them. Its times, and what made its results, are then the truth still.
    """
    if any(scan.status in ("ok", "flagged") for scan in scans):
        return None
    try:
        earlier = json.loads((out / "run.json").read_bytes())
        if _results(earlier) != _results(json.loads(to_json(run))):
            return None
        files: dict[str, bytes | None] = {**_tables(scans, earlier)}
        if report:
            from hz_runtime.report import figures_of, page_files

            files.update(page_files(earlier, figures_of(out, earlier["scans"])))
    except Exception:  # it is not there, or another version's, or no run.json at all: then it is written
        return None
    return earlier if all(holds(out / name, data) for name, data in files.items()) else None


def _tables(scans: Sequence[ScanResult], run: Mapping[str, Any]) -> dict[str, bytes]:
    return {
        "predictions.tsv": predictions_tsv(scans, RunOutputs.of(run)),
        "dataset_description.json": to_json(dataset_description()),
    }


def _results(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run.json says about results, the same whether they were made in this run or before it."""
    options = {key: value for key, value in run["options"].items() if key not in _HOW_OPTIONS}
    rest = {key: value for key, value in run.items() if key not in _HOW}
    return {**rest, "options": options, "scans": [_result(scan) for scan in run["scans"]]}


def _result(scan: Mapping[str, Any]) -> dict[str, Any]:
    status = scan["recorded"] or scan["status"]
    reason = "" if status in ("ok", "flagged") else scan["reason"]  # else its flags, and that it was done
    return {**scan, "status": status, "recorded": "", "reason": reason, "seconds": {}}
