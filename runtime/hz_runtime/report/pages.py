"""Both pages of a run on disk, and the figures that they are drawn from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hz_runtime.errors import HzError
from hz_runtime.io.atomic import write_changed
from hz_runtime.report.figure import Figure
from hz_runtime.report.group import render_group
from hz_runtime.report.row_picture import row_picture
from hz_runtime.report.scans import render_report
from hz_runtime.results.harm import Harm, harm_of_scan

REPORT, GROUP = "report.html", "group.html"
MOST_PICTURES = 500  # scans with pictures on a page that a browser still opens, about 40 MB
VIEWER_BYTES = 6 * 2**20
"""Small volumes that a page holds, in bytes: about 20 scans, so that a page stays one that a mail carries."""


def page_files(run: Mapping[str, Any], figures: Mapping[str, Figure]) -> dict[str, bytes | None]:
    """The bytes of report.html, and of group.html where there are scans to compare, else None.

    run : the object of run.json; missing keys leave gaps, never an error.
    figures : by the scan's `name`; a scan without one has a panel without pictures.
    """
    group = render_group(run, figures)
    report = render_report(run, figures, GROUP if group is not None else None)
    return {GROUP: None if group is None else _encoded(group), REPORT: _encoded(report)}


def write_pages(out: Path, run: Mapping[str, Any], figures: Mapping[str, Figure]) -> bool:
    """Write the `page_files` of a run, atomically; returns whether that changed any.

    Raises HzError, OSError.
    """
    changed = False
    for name, page in page_files(run, figures).items():
        if page is not None:
            changed |= write_changed(out / name, page)
        elif os.path.lexists(out / name):  # one of an earlier run would show other scans
            (out / name).unlink(missing_ok=True)
            changed = True
    return changed


def remove_pages(out: Path) -> None:
    """Remove both pages: those of an earlier run would show other scans than run.json."""
    for name in (REPORT, GROUP):
        with suppress(OSError):
            (out / name).unlink()


def figures_of(out: Path, scans: Sequence[Mapping[str, Any]], limit: int = VIEWER_BYTES) -> dict[str, Figure]:
    """The figures of run.json's `scans` that can be read in the folder `out`, by the scan's `name`.

    limit : bytes of small volumes to keep. Flagged scans come first, the most harmful before the others, then
        the order of the run; the others' figures have but the picture of the row. No more than MOST_PICTURES
        scans have a figure, so that a long run's page can be made and opened.
    """
    figures: dict[str, Figure] = {}
    for scan in sorted(scans, key=_urgency):
        name = str(scan.get("name"))
        if not scan.get("figure") or name in figures:
            continue
        with suppress(OSError, HzError):  # a report without one picture is better than none
            figure = Figure.from_bytes((out / str(scan["figure"])).read_bytes())
            size = len(figure.small_before) + len(figure.small_after)
            if size > limit:
                figure = replace(figure, row=row_picture(figure), small_before=b"", small_after=b"")
            else:
                limit -= size
            figures[name] = figure
        if len(figures) == MOST_PICTURES:
            break
    return figures


def _urgency(scan: Mapping[str, Any]) -> int:
    harm = harm_of_scan(scan)
    return len(Harm) if harm is None else harm


def _encoded(text: str) -> bytes:
    # A file name may hold bytes that are not text (surrogates): shown as "?".
    return text.encode("utf-8", "replace")
