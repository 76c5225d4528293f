"""The scans of a run in a few words each: those to look at first, and the table of all.

Everything that comes from outside (names, reasons) is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import compress

from hz_runtime.report import gates, markup, predictions, scan_labels
from hz_runtime.report.figure import Figure
from hz_runtime.report.png import png_size
from hz_runtime.report.row_picture import row_picture
from hz_runtime.report.scan_labels import Scan
from hz_runtime.results.harm import Harm, harm_of, harm_of_scan
from hz_runtime.results.output_columns import RunOutputs

_MOST_LISTED = 50
_CAVEAT = (
    '<p class="soft small">An age interval was made for people and scans like those of the training: '
    "of a flagged scan it may not hold the age.</p>\n"
)


def attention(scans: Sequence[Scan]) -> str:
    """What failed or was flagged, the most harmful first; nothing for a single scan, which is seen anyway."""
    found = [(harm_of_scan(scan), number, scan) for number, scan in enumerate(scans, 1)]
    alarming = sorted((harm, number) for harm, number, _ in found if harm is not None)
    if len(scans) < 2 or not alarming:
        return ""
    items = "".join(
        f"<li>{scan_labels.pill(scans[number - 1])} {scan_labels.anchor(number, scans[number - 1])}: "
        f"{scan_labels.brief(scans[number - 1])}</li>\n"
        for _, number in alarming[:_MOST_LISTED]
    )
    left = len(alarming) - _MOST_LISTED
    more = f"<p>and {left} more in the table below.</p>\n" if left > 0 else ""
    return f"<h2>Look at these first</h2>\n<ul>\n{items}</ul>\n{more}"


def table(scans: Sequence[Scan], outputs: RunOutputs, figures: Mapping[str, Figure]) -> str:
    """A row a scan, with its picture, and no column that is empty.  figures : by the scan's `name`."""
    if not scans:
        return "<h2>Scans</h2>\n<p>This run held no scans.</p>\n"
    gated = any(gates.gates_of(scan) for scan in scans)
    cells = [predictions.cells(scan, outputs) for scan in scans]
    filled = [any(column) for column in zip(*cells, strict=True)]  # known ages, for one, are often not given
    heads = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (
            *((name, "") for name in ("Scan", "Status", "Why", *(("Gates",) if gated else ()))),
            *((name, ' class="num"') for name in compress(predictions.headings(outputs), filled)),
        )
    )
    parts = [
        f'<h2>Scans</h2>\n<p class="soft small">{predictions.column_legend(outputs)}</p>\n',
        _CAVEAT if any(map(_has_caveat, scans)) else "",
        f'<div class="scroll"><table id="scans"><thead><tr>{heads}</tr></thead>\n<tbody>\n',
    ]
    for number, (scan, row) in enumerate(zip(scans, cells, strict=True), 1):
        numbers = "".join(f'<td class="num">{cell}</td>' for cell in compress(row, filled))
        if gated:
            numbers = f'<td class="gated">{gates.summary(gates.gates_of(scan))}</td>{numbers}'
        parts.append(
            f'<tr data-scan="{number}" data-status="{scan_labels.status(scan)}">'
            f"<td>{scan_labels.anchor(number, scan)}{_picture(scan, figures)}</td>"
            f"<td>{scan_labels.pill(scan)}</td><td>{scan_labels.folded(scan)}</td>{numbers}</tr>\n"
        )
    parts.append("</tbody></table></div>\n")
    return "".join(parts)


def _has_caveat(scan: Scan) -> bool:
    return any(harm_of(str(flag)) == Harm.CAVEAT for flag in markup.sequence(scan.get("flags")))


def _picture(scan: Scan, figures: Mapping[str, Figure]) -> str:
    figure = figures.get(str(scan.get("name")))
    png = row_picture(figure) if figure is not None and scan.get("status") != "failed" else b""
    if not png:
        return ""
    width, height = png_size(png)
    return (
        f'<img class="in-row" loading="lazy" decoding="async" width="{width}" height="{height}" '
        f'alt="Axial slice before and after" title="before | after" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )
