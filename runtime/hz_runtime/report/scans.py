"""report.html: what became of every scan.

Everything that comes from outside (names, reasons, options) is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hz_runtime.report import gates, image_quality, markup, predictions, viewer
from hz_runtime.report.age_scale import AgeScale
from hz_runtime.report.figure import Figure
from hz_runtime.report.histogram import Counts, histogram_svg
from hz_runtime.report.page import NOTICE, page
from hz_runtime.report.scan_labels import STATUSES, first_reason, pill, reasons, title
from hz_runtime.report.scan_table import attention, table
from hz_runtime.report.strips import DIFFERENCE_LIMIT, difference_colours
from hz_runtime.results.output_columns import RunOutputs

OPEN_PANELS = 20
_MEANING = {
    "ok": "processed, nothing to remark",
    "flagged": "processed, but look at it before use",
    "failed": "could not be processed",
    "skipped": "left as it is: done by an earlier run, or not reached by this one",
}
_MOST_CURVES = 60


def render_report(run: Mapping[str, Any], figures: Mapping[str, Figure], group: str | None = None) -> str:
    """The page of a run.

    run : the object of run.json; missing keys leave gaps, never an error.
    figures : by the scan's `name`; a scan without one has a panel without pictures.
    group : file name of the page that compares the scans, where there is one.
    """
    scans = [markup.mapping(scan) for scan in markup.sequence(run.get("scans"))]
    outputs = predictions.outputs_of(run)
    scale = AgeScale.of(run)
    pictured = [
        (number, title(scan), figures[str(scan.get("name"))])
        for number, scan in enumerate(scans, 1)
        if str(scan.get("name")) in figures and scan.get("status") != "failed"
    ]
    looking = viewer.viewer(pictured, len(pictured))
    parts = [
        *_header(run, scans, group),
        "<main>\n",
        *_summary(run, scans),
        *_together(figures),
        attention(scans),
        table(scans, outputs, figures),
        looking,
    ]
    if scans:
        parts.append("<h2>Scan by scan</h2>\n")
    for number, scan in enumerate(scans, 1):
        figure = figures.get(str(scan.get("name")))
        parts += _panel(number, scan, figure, outputs, scale, bool(looking))
    parts.append("</main>\n")
    return page(
        f"Harmonization report, {markup.plural(len(scans), 'scan')}",
        "".join(parts),
        ("table.js", viewer.SCRIPT) if looking else ("table.js",),
        (viewer.niivue(),) if looking else (),
    )


# Top of the page


def _header(run: Mapping[str, Any], scans: Sequence[Mapping[str, Any]], group: str | None) -> list[str]:
    counts = _counts(run, scans)
    done = counts.get("ok", 0) + counts.get("flagged", 0)
    lead = f"{done} of {markup.plural(sum(counts.values()), 'scan')} harmonized in this run."
    before = sum(scan.get("status") == "skipped" and bool(scan.get("outputs")) for scan in scans)
    if before:
        lead += f" {before} had been done before."
    pills = "".join(
        f'<span class="pill {status}" title="{_MEANING[status]}">{counts[status]} {status}</span>'
        for status in STATUSES
        if counts.get(status)
    )
    return [
        "<header>\n<h1>Harmonization report</h1>\n",
        f'<p class="lead">{lead}</p>\n<p class="notice">{NOTICE}</p>\n',
        f'<div class="pills">{pills}</div>\n' if pills else "",
        f'<nav><a href="{markup.link(group)}">Group page: the scans and their ages compared</a></nav>\n'
        if group
        else "",
        "</header>\n",
    ]


def _summary(run: Mapping[str, Any], scans: Sequence[Mapping[str, Any]]) -> list[str]:
    bundle, backend, timings = (markup.mapping(run.get(key)) for key in ("bundle", "backend", "timings"))
    wall = markup.number(timings.get("wall_s", run.get("seconds")))
    facts = [
        ("Bundle", markup.text(bundle.get("name"))),
        ("Bundle id", f"<code>{markup.text(_short(bundle.get('id')))}</code>" if bundle.get("id") else ""),
        ("Backend", markup.text(" ".join(str(backend[k]) for k in ("name", "version") if backend.get(k)))),
        ("Ran on", markup.text(_ran_on(backend))),
        ("hz version", markup.text(run.get("hz_version"))),
        ("Time", markup.duration(wall) if wall is not None else ""),
    ]
    ran = sum(scan.get("status") in ("ok", "flagged", "failed") for scan in scans)
    if wall and ran:
        facts.append(("Per scan", f"{wall / ran:.2f} s"))
    parts = [
        '<h2>This run</h2>\n<div class="cards">\n<section class="card" aria-label="Model and machine">',
        _facts(facts),
    ]
    attempts = [markup.text(line) for line in markup.sequence(backend.get("ladder"))]
    if attempts:
        items = "".join(f"<li>{line}</li>" for line in attempts)
        parts.append(f"<details><summary>How the backend was chosen</summary><ol>{items}</ol></details>")
    options = markup.mapping(run.get("options"))
    if options:
        rows = [(markup.text(key), markup.text(_option(value))) for key, value in sorted(options.items())]
        parts.append(f"<details><summary>Options</summary>{_facts(rows)}</details>")
    parts.append("</section>\n")
    stages = markup.mapping(timings.get("stages"))
    if stages:
        parts += ['<section class="card" aria-label="Timings">', _stages(stages), "</section>\n"]
    parts.append("</div>\n")
    return parts


def _ran_on(backend: Mapping[str, Any]) -> str:
    provider, device = (str(backend.get(key) or "") for key in ("provider", "device"))
    known = not device or device.casefold() in provider.casefold()
    return provider if known else f"{provider} on {device}".removeprefix(" on ")


def _stages(stages: Mapping[str, Any]) -> str:
    rows = []
    for name, value in stages.items():
        stage = value if isinstance(value, Mapping) else {"total_s": value}
        total, median = (markup.fixed(stage.get(key), 2) for key in ("total_s", "median_s"))
        numbers = f'<td class="num">{total}</td><td class="num">{median}</td>'
        rows.append(f"<tr><td>{markup.text(name)}</td>{numbers}</tr>")
    return (
        '<table><thead><tr><th scope="col">Stage</th><th scope="col" class="num">total, s</th>'
        '<th scope="col" class="num">median a scan, s</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        '<p class="soft small">Stages overlap, so their totals can add up to more than the run took.</p>'
    )


def _together(figures: Mapping[str, Figure]) -> list[str]:
    """All histograms over each other: whether the scans came closer, at one glance."""
    shown = [figures[name] for name in sorted(figures)]
    if len(shown) < 2:
        return []
    if len(shown) > _MOST_CURVES:
        shown = [shown[i * len(shown) // _MOST_CURVES] for i in range(_MOST_CURVES)]
    before = [figure.histogram_before for figure in shown]
    after = [figure.histogram_after for figure in shown]
    of = "all" if len(shown) == len(figures) else f"{len(shown)} of {len(figures)}"
    return [
        "<h2>Intensities of all scans</h2>\n",
        f'<p class="soft small">Brain voxels by intensity, one line a scan ({of} scans). '
        "Harmonized scans should lie closer together than raw ones.</p>\n",
        '<div class="cards">\n<figure class="card"><figcaption>Before</figcaption>',
        histogram_svg(before, [], f"Intensity histograms of {len(shown)} raw scans"),
        '</figure>\n<figure class="card"><figcaption>After</figcaption>',
        histogram_svg([], after, f"Intensity histograms of {len(shown)} harmonized scans"),
        "</figure>\n</div>\n",
    ]


# One scan


def _panel(
    number: int,
    scan: Mapping[str, Any],
    figure: Figure | None,
    outputs: RunOutputs,
    scale: AgeScale,
    looking: bool,
) -> list[str]:
    opened = " open" if number <= OPEN_PANELS else ""
    # The link target is inside <details>, so that following a link opens it.
    parts = [
        f'<details class="panel" data-scan="{number}"{opened}>'
        f'<summary><span class="name">{markup.text(title(scan))}</span>{pill(scan)}</summary>\n'
        f'<div class="body" id="scan-{number}">\n'
    ]
    failed = scan.get("status") == "failed"
    if figure is None or failed:
        nothing = "No reason was recorded." if failed else "No picture was kept for this scan."
        why = first_reason(scan)[0] or nothing
        parts.append(f"<p>{why}</p>\n{_details(scan, None, outputs, scale)}</div></details>\n")
        return parts
    look = ""
    if looking and figure.small_before:
        look = f' <a href="#viewer-title" data-view="{number}">Look through it slice by slice</a>'
    x, y, z = (round(mm) for mm in figure.centre_mm)
    grid = "full resolution" if figure.space == "native" else "the model's grid"
    parts += [
        '<div class="columns">\n<div>\n',
        *_pictures(scan, figure),
        f'<p class="soft small">Sagittal, coronal and axial slices through {x}, {y}, {z} mm '
        f"(scanner coordinates), {grid}. Neurological sides: R is the subject's right; A is front."
        f"{look}</p>\n",
        f"</div>\n<div>\n{_details(scan, figure, outputs, scale)}</div>\n</div>\n</div></details>\n",
    ]
    return parts


def _pictures(scan: Mapping[str, Any], figure: Figure) -> list[str]:
    width, height = figure.size
    (low, high), (black, white) = figure.window, figure.window_after
    limit = f"{DIFFERENCE_LIMIT:g}"
    label = markup.text(title(scan))
    raw = "the brain of the raw head, field corrected" if scan.get("gates") else "as scanned"
    scanned = raw if figure.space == "native" else "as the model saw it, scaled 0 to 1"
    rows = (
        (
            figure.before,
            "Before",
            f"{scanned}, shown from {low:.4g} (black) to {high:.4g} (white)",
            "raw brain",
        ),
        (
            figure.after,
            "After",
            f"harmonized, shown from {black:.3g} (black) to {white:.3g} (white)",
            "harmonized brain",
        ),
        (
            figure.difference,
            "Difference",
            "after minus before, both scaled 0 to 1 "
            f'<span class="legend">\u2212{limit}{_legend()}+{limit}</span>',
            "difference, blue where harmonization made it darker, red where brighter",
        ),
    )
    return [
        f"<figure><figcaption><strong>{name}</strong>: {caption}</figcaption>"
        f'<img class="strip" loading="lazy" decoding="async" width="{width}" height="{height}" '
        f'alt="{label}: sagittal, coronal and axial slice, {alt}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>\n'
        for png, name, caption, alt in rows
    ]


def _legend() -> str:
    colours = difference_colours(41)
    bars = "".join(f'<rect x="{3 * i}" width="3" height="10" fill="{c}"/>' for i, c in enumerate(colours))
    return f'<svg width="123" height="10" aria-hidden="true">{bars}</svg>'


def _details(scan: Mapping[str, Any], figure: Figure | None, outputs: RunOutputs, scale: AgeScale) -> str:
    parts = []
    facts = predictions.facts(scan, outputs)
    if figure is not None:
        facts.append(("Mean change", f"{figure.mean_change:.3f} of the range"))
    shown = _facts(facts)
    if shown:
        parts.append(f"<h3>Results</h3>{shown}\n{scale.svg(scan)}")
    lights = gates.lights(gates.gates_of(scan))
    if lights:
        parts.append(f"<h3>Gates of the preparation</h3>{lights}")
    quality = image_quality.listing(scan)
    if quality:
        parts.append(f"<h3>Image quality</h3>{quality}")
    found = reasons(scan)
    if found:
        items = "".join(f"<li>{reason}</li>" for reason in found)
        parts.append(f"<h3>Look at this scan because</h3><ul>{items}</ul>\n")
    if figure is not None:
        label = f"Intensity histograms of {title(scan)} before and after harmonization"
        curves: tuple[list[Counts], list[Counts]] = ([figure.histogram_before], [figure.histogram_after])
        parts.append(f"<h3>Intensity of brain voxels</h3>{histogram_svg(*curves, markup.clean(label))}\n")
        parts.append(_KEY)
    files = [str(name) for name in markup.sequence(scan.get("outputs"))]
    if files:
        items = "".join(
            f'<li><a href="{markup.link(name)}"><code>{markup.text(name)}</code></a></li>' for name in files
        )
        parts.append(f'<h3>Files</h3><ul class="small">{items}</ul>\n')
    return "".join(parts)


_KEY = (
    '<p class="key"><span><svg width="26" height="8" aria-hidden="true">'
    '<path class="before" d="M0 4H26"/></svg>before</span><span>'
    '<svg width="26" height="8" aria-hidden="true">'
    '<path class="after" d="M0 4H26"/></svg>after</span></p>\n'
)


# Small pieces


def _counts(run: Mapping[str, Any], scans: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    stored = {
        k: int(markup.number(v) or 0) for k, v in markup.mapping(run.get("counts")).items() if k in STATUSES
    }
    if any(stored.values()):
        return stored
    return {status: sum(scan.get("status") == status for scan in scans) for status in STATUSES}


def _facts(rows: Sequence[tuple[str, str]]) -> str:
    """A description list of the rows that have something to say; names and values are HTML already."""
    known = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows if value)
    return f"<dl>{known}</dl>" if known else ""


def _option(value: object) -> object:
    # A report travels further than a command line: no folders of this machine in it.
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_option(item)) for item in value)
    return value


def _short(bundle_id: object) -> str:
    return str(bundle_id).removeprefix("sha256:")[:12]
