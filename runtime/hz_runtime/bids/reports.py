"""The pages of participants made again from what their runs left. Nothing is run, no other file touched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hz_runtime.batch.folder_lock import locked
from hz_runtime.bids.derivatives import WORK_NAME
from hz_runtime.bids.participant import Level
from hz_runtime.bids.record import results
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import write_changed
from hz_runtime.io.json_text import OTHER_FORM
from hz_runtime.report import figures_of, page_files, write_pages
from hz_runtime.results.scan_result import ScanResult

REPORT = "report.html"


def remake_reports(out: Path, subjects: Sequence[str] = (), work: Path | None = None) -> Level:
    """Write the page of every participant and session of the data set `out` again, from its work folder.

    subjects : labels; empty: all.  work : that of the participant level.
    A unit whose folder is held, or that cannot be written, is a problem. Raises UsageError where no work
    folder is there, as after it was removed.
    """
    work = work or out / WORK_NAME
    labels = {label.removeprefix("sub-") for label in subjects}
    scans: list[ScanResult] = []
    problems: list[str] = []
    changed, found = False, False
    for folder, run in _runs(work):
        if labels and folder.name.split("_")[0].removeprefix("sub-") not in labels:
            continue
        found = True
        try:
            with locked(folder):
                figures = figures_of(folder, run["scans"])
                page = page_files(run, figures)[REPORT] or b""
                changed |= write_pages(folder, run, figures)
                changed |= write_changed(out / f"{folder.name}.html", page)
            scans += results(run["scans"])
        except (HzError, OSError) as error:
            text = error.one_line if isinstance(error, HzError) else f"{error.strerror}."
            problems.append(f"{folder.name}: {text}")
    if not found:
        raise UsageError(
            f"{out.name} holds nothing that pages could be made of.",
            "First:  hz-bids BIDS_DIR OUT participant",
        )
    return Level(tuple(scans), tuple(problems), unchanged=not (changed or problems))


def _runs(work: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, run.json) of every unit that was run to its end."""
    for path in sorted(work.glob("sub-*/run.json")):
        try:
            run = json.loads(path.read_bytes())
            results(run["scans"])
        except (OSError, *OTHER_FORM) as error:
            raise UsageError(
                f"{path.parent.name}/run.json is not one that hz wrote.", "Run the participant again."
            ) from error
        yield path.parent, run
