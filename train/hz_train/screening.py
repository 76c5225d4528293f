"""Screening a cohort before training: every scan against the others of its site, a table and a page.

Scans are read one at a time; kept of each are its measures, 16^3 voxels and its three middle slices.
"""

from __future__ import annotations

import base64
import csv
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hz_runtime.errors import ScanError
from hz_runtime.io.atomic import atomic_write_bytes
from hz_runtime.io.participants import read_table
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.outliers import (
    COARSE,
    LEAST_SCANS,
    MEASURES,
    THRESHOLD,
    OutlierScore,
    coarse,
    cohort_scores,
    measured,
)
from hz_runtime.model_space.recipe import Recipe, to_model_space
from hz_runtime.model_space.resample import axis_weights
from hz_runtime.report import markup
from hz_runtime.report.page import page
from hz_runtime.report.png import encode_png
from hz_train.cohort import Cohort, Scan

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

MOST_PICTURES = 100
PIXEL_MM = 1.5
FILES = ("file", "truth", "labels")  # columns of a participants.tsv that name files beside it
FIGURE_STYLE = (
    "\nfigure { margin: 0 0 1.4rem; } figure img { display: block; max-width: 100%; height: auto; }\n"
)
NOTICE = "An outlier is unlike the others, not wrong: look at it before you leave it out."


@dataclass(frozen=True)
class Screened:
    """One scan, judged.

    result : its score; infinite, without measures, for a scan that cannot be read or brought to model space.
    slices : the middle sagittal, coronal and axial slice of the scan in model space, float32 in [0, 1].
    """

    scan: Scan
    result: OutlierScore
    slices: tuple[F32, ...] = ()

    @property
    def flagged(self) -> bool:
        return bool(self.result.reasons)


@dataclass(frozen=True)
class Screening:
    """scans in the order of the cohort; means: of each site, the middle slices of its mean scan."""

    scans: tuple[Screened, ...]
    means: Mapping[str, tuple[F32, ...]]
    spacing: tuple[float, float, float]
    threshold: float

    @property
    def flagged(self) -> tuple[Screened, ...]:
        """The outliers, the most unlike first."""
        return tuple(sorted((s for s in self.scans if s.flagged), key=lambda s: -s.result.score))

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Sites with too few scans to tell."""
        counts = {site: sum(s.scan.site == site for s in self.scans) for site in self.means}
        return tuple(site for site, n in counts.items() if n < LEAST_SCANS)


def screen(
    cohort: Cohort, recipe: Recipe | None = None, threshold: float = THRESHOLD, workers: int = 2
) -> Screening:
    """Score every scan in model space. One that cannot be used is an outlier, and says why."""
    recipe = recipe or Recipe()

    def one(scan: Scan) -> tuple[Screened, F32 | None]:
        try:
            made = to_model_space(read_volume(scan.path), recipe)
        except ScanError as error:
            return Screened(scan, OutlierScore(float("inf"), {}, {}, (error.one_line,))), None
        features = {**made.features, "shift_mm": float(np.linalg.norm(made.shift_mm))}
        found = OutlierScore(0.0, {}, measured(features, made.grid), ())
        return Screened(scan, found, _middle(made.grid)), coarse(made.grid)

    with ThreadPoolExecutor(workers) as pool:
        read = list(
            tqdm(pool.map(one, cohort.scans), total=len(cohort.scans), desc="screening", disable=None)
        )
    judged = [screened for screened, _ in read]
    means = {}
    for site in cohort.sites:
        here = [n for n, (s, volume) in enumerate(read) if s.scan.site == site and volume is not None]
        volumes = np.stack([read[n][1] for n in here]) if here else np.empty((0, *COARSE), np.float32)
        scores = cohort_scores([judged[n].result.values for n in here], volumes, threshold)
        for n, result in zip(here, scores, strict=True):
            judged[n] = replace(judged[n], result=result)
        slices = [judged[n].slices for n in here]
        means[site] = tuple(np.mean(part, axis=0) for part in zip(*slices, strict=True))
    spacing = np.linalg.norm(recipe.grid_affine[:3, :3], axis=0).tolist()
    return Screening(tuple(judged), means, (spacing[0], spacing[1], spacing[2]), threshold)


def _middle(grid: F32) -> tuple[F32, ...]:
    return tuple(np.take(grid, grid.shape[axis] // 2, axis=axis).copy() for axis in range(3))


def write_screening(out: Path, screening: Screening) -> tuple[Path, Path]:
    """outliers.tsv, a row a scan, and outliers.html, the flagged ones with pictures; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    table, page = out / "outliers.tsv", out / "outliers.html"
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    names = list(MEASURES)
    writer.writerow(
        ["file", "participant_id", "site", "outlier", "score", "reasons", *names, *(f"z_{n}" for n in names)]
    )
    for s in screening.scans:
        judged = bool(s.result.z) or s.flagged
        score = f"{s.result.score:.2f}" if judged else "n/a"
        outlier = "n/a" if not judged else "yes" if s.flagged else "no"
        values = [_cell(s.result.values.get(n), 5) for n in names]
        zs = [_cell(s.result.z.get(n), 3) for n in names]
        reasons = markup.clean("; ".join(s.result.reasons))
        writer.writerow(
            [s.scan.path.name, s.scan.subject, s.scan.site, outlier, score, reasons, *values, *zs]
        )
    atomic_write_bytes(table, text.getvalue().encode("utf-8", "replace"))
    atomic_write_bytes(page, render(screening).encode("utf-8", "replace"))
    return table, page


def _cell(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}g}"


def without(table: Path, out: Path, left_out: Sequence[Scan]) -> Path:
    """Write out/participants.tsv: the rows of `table` without those scans, file names relative to `out`."""
    gone = {scan.path for scan in left_out}
    read = read_table(table)
    out.mkdir(parents=True, exist_ok=True)
    target = out / "participants.tsv"
    if target.resolve() == table.resolve():
        target = out / "participants_without_outliers.tsv"
    lines = [read.headings]
    for row in read.rows:
        if (table.parent / row.get("file")).resolve() in gone:
            continue
        cells = dict(zip(read.columns, row.texts, strict=False))
        for column in FILES:
            if (file := row.get(column, "n/a")).lower() != "n/a":
                cells[column] = os.path.relpath((table.parent / file).resolve(), out.resolve())
        lines.append(tuple(cells.get(column) or "n/a" for column in read.columns))
    text = "".join("\t".join(line) + "\n" for line in lines)
    atomic_write_bytes(target, text.encode("utf-8"))
    dictionary = table.with_suffix(".json")
    if dictionary.is_file():  # the unit of the ages stands there
        atomic_write_bytes(target.with_suffix(".json"), dictionary.read_bytes())
    return target


def render(screening: Screening) -> str:
    """The page as text: one self-contained HTML file, no scripts, nothing loaded from elsewhere."""
    flagged, count = screening.flagged, len(screening.scans)
    lead = (
        f"{len(flagged)} of {markup.plural(count, 'scan')} have a robust score above {screening.threshold:g}."
    )
    parts = [
        f'<header>\n<h1>Outliers</h1>\n<p class="lead">{markup.text(lead)}</p>\n'
        f'<p class="notice">{NOTICE}</p>\n</header>\n<main>\n',
        _sites(screening),
    ]
    if flagged:
        parts.append(
            "<h2>Scan by scan</h2>\n<p>Left: the scan. Right: the mean of its site. Same slices.</p>\n"
        )
    parts += [_panel(s, screening) for s in flagged[:MOST_PICTURES]]
    if len(flagged) > MOST_PICTURES:
        parts.append(f"<p>{len(flagged) - MOST_PICTURES} more are in outliers.tsv.</p>\n")
    return page("Outliers", "".join([*parts, "</main>\n"]), more_style=FIGURE_STYLE)


def _sites(screening: Screening) -> str:
    rows = []
    for site in screening.means:
        here = [s for s in screening.scans if s.scan.site == site]
        found = sum(s.flagged for s in here)
        few = f"not compared: fewer than {LEAST_SCANS} scans" if site in screening.unjudged else ""
        cells = (markup.text(site), str(len(here)), str(found), few)
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("Site", "Scans", "Outliers", ""))
    return f"<h2>Sites</h2>\n<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>\n"


def _panel(screened: Screened, screening: Screening) -> str:
    scan, result = screened.scan, screened.result
    score = f"{result.score:.1f}" if np.isfinite(result.score) else "cannot be used"
    title = f"{scan.path.name} ({scan.site}), {score}"
    items = "".join(f"<li>{markup.text(reason)}</li>" for reason in result.reasons)
    picture = ""
    if screened.slices:
        png = encode_png(_beside(screened.slices, screening.means[scan.site], screening.spacing))
        address = "data:image/png;base64," + base64.b64encode(png).decode()
        picture = f'<img src="{address}" alt="{markup.text(scan.path.name)} beside the mean of its site">'
    return f"<h3>{markup.text(title)}</h3>\n<ul>{items}</ul>\n<figure>{picture}</figure>\n"


def _beside(slices: tuple[F32, ...], means: tuple[F32, ...], spacing: tuple[float, float, float]) -> U8:
    """Six upright slices (h, w) uint8: the scan's three, then the mean's, in square pixels."""
    tiles = []
    for part in (slices, means):
        for axis, cut in enumerate(part):
            mm = [step for k, step in enumerate(spacing) if k != axis]
            square = _stretched(_stretched(cut, mm[0]).T, mm[1])  # (up, across)
            tiles.append(np.clip(square[::-1], 0, 1))
        tiles.append(np.zeros((1, 12), np.float32))
    height = max(tile.shape[0] for tile in tiles)
    padded = [
        np.pad(t, (((height - t.shape[0]) // 2, -(-(height - t.shape[0]) // 2)), (2, 2))) for t in tiles
    ]
    return np.ascontiguousarray((np.hstack(padded[:-1]) * 255).astype(np.uint8))


def _stretched(cut: F32, mm: float) -> F32:
    """Axis 0 of voxels of `mm` as pixels of PIXEL_MM."""
    n = cut.shape[0]
    count = max(1, round(n * mm / PIXEL_MM))
    scale = n / count
    return np.asarray(axis_weights(n, count, scale, (scale - 1) / 2, clamp=True) @ cut, np.float32)
