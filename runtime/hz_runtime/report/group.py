"""group.html: the scans of a run compared, by site and by age."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hz_runtime.bundle.age_calibration import same_age_flags
from hz_runtime.report import markup
from hz_runtime.report.age_scale import key
from hz_runtime.report.figure import Figure
from hz_runtime.report.page import NOTICE, page
from hz_runtime.report.plot import ASPECT, Line, Point, mark, scatter
from hz_runtime.report.predictions import pair, prediction_of
from hz_runtime.report.projection import project, site_share

FEWEST = 3
NO_SITE = "no site given"
_NUMBER = ' class="num"'


@dataclass(frozen=True)
class Member:
    """A scan of the group. name, site : plain text.  predicted, known : years, or None."""

    name: str
    site: str
    predicted: float | None
    known: float | None
    figure: Figure | None

    @property
    def gap(self) -> float:
        """Brain-PAD: predicted minus known age, years; of members that have both."""
        assert self.predicted is not None
        assert self.known is not None
        return self.predicted - self.known


def render_group(run: Mapping[str, Any], figures: Mapping[str, Figure]) -> str | None:
    """The page of a group, or None where fewer than three scans can be compared and nothing is to be said.

    run : the object of run.json; a scan's "site" and "age" are used where they are given.
    figures : by the scan's `name`.
    """
    members = _members(run, figures)
    pictured = [m for m in members if m.figure is not None]
    aged = [m for m in members if m.predicted is not None and m.known is not None]
    predicted = [(m.predicted, m.known) for m in members if m.predicted is not None]
    same = same_age_flags([age for age, _ in predicted], [age for _, age in predicted])
    if max(len(pictured), len(aged)) < FEWEST and not same:
        return None
    sites = sorted({m.site for m in members}, key=lambda s: (s == NO_SITE, s))
    groups = {site: n for n, site in enumerate(sites)}
    named = [site for site in sites if site != NO_SITE]
    of = f" from {markup.plural(len(named), 'site')}" if named else ""
    parts = [
        "<header>\n<h1>Group report</h1>\n",
        f'<p class="lead">{markup.plural(len(members), "harmonized scan")}{of} compared.</p>\n',
        f'<p class="notice">{NOTICE}</p>\n',
        *(f'<p class="notice">{text[0].upper()}{text[1:]}.</p>\n' for text in map(markup.text, same)),
        '<nav><a href="./report.html">Report scan by scan</a></nav>\n</header>\n<main>\n',
    ]
    if len(pictured) >= FEWEST:
        parts += _together(pictured, groups)
    if len(aged) >= FEWEST:
        parts += _ages(aged, groups, pair(markup.mapping(run.get("age")).get("training_range")))
    else:
        parts.append(
            "<h2>Ages</h2>\n<p>Fewer than three scans have a predicted and a known age. Give known ages with "
            "<code>--participants TSV</code> to compare them.</p>\n"
        )
    parts.append("</main>\n")
    return page(f"Group report, {markup.plural(len(members), 'scan')}", "".join(parts))


def _members(run: Mapping[str, Any], figures: Mapping[str, Figure]) -> list[Member]:
    found = []
    for scan in (markup.mapping(scan) for scan in markup.sequence(run.get("scans"))):
        if scan.get("status") == "failed" or not markup.sequence(scan.get("outputs")):
            continue
        name = str(scan.get("name") or "unnamed scan")
        site = str(scan.get("site") or NO_SITE)
        predicted, known = prediction_of(scan).age, markup.number(scan.get("age"))
        found.append(Member(name, site, predicted, known, figures.get(name)))
    return found


# Whether the sites come together


def _together(members: Sequence[Member], groups: Mapping[str, int]) -> list[str]:
    figures = [m.figure for m in members if m.figure is not None]
    sides = [
        np.stack([np.frombuffer(means, np.uint8) for means in side]).astype(np.float64) / 255
        for side in ([f.blocks_before for f in figures], [f.blocks_after for f in figures])
    ]
    points = project(*sides)
    across, up = (
        1.08 * float(np.abs([points.before[:, k], points.after[:, k]]).max()) + 1e-6 for k in (0, 1)
    )
    across = max(across, up * ASPECT)  # a distance is the same one way and the other
    known = [i for i, m in enumerate(members) if m.site != NO_SITE]
    axes = tuple(
        f"component {n + 1} ({share:.0%} of the variance)" for n, share in enumerate(points.variance_shares)
    )
    plots = []
    for name, what, places, features in (
        ("Before", "raw", points.before, sides[0]),
        ("After", "harmonized", points.after, sides[1]),
    ):
        share = site_share(features[known], [members[i].site for i in known])
        says = "" if share is None else f": {share[0]:.0%} of the variance lies between sites"
        chance = "" if share is None else f" (chance alone: {share[1]:.0%})"
        marks = [
            Point(float(x), float(y), groups[m.site], f"{m.name}, {m.site}")
            for (x, y), m in zip(places, members, strict=True)
        ]
        drawn = scatter(
            marks,
            f"Principal components of {len(marks)} {what} scans{says}",
            (axes[0], axes[1]),
            limits=((-across, across), (-across / ASPECT, across / ASPECT)),
            numbers=False,
        )
        plots.append(
            f'<figure class="card"><figcaption><strong>{name}</strong>{says}{chance}</figcaption>'
            f"{drawn}</figure>\n"
        )
    return [
        "<h2>Do the scans come together?</h2>\n",
        '<p class="soft small">Every point is a scan: the first two principal components of its block means '
        "(8 \u00d7 8 \u00d7 8) on the network's grid. Both plots have the same axes and the same scale; each "
        "is centred on its own mean. Sites that differ by their scanners alone should mix afterwards; "
        "sites whose people differ in age or health should not mix entirely.</p>\n",
        _sites_key(groups),
        f'<div class="plots">\n{"".join(plots)}</div>\n',
    ]


def _sites_key(groups: Mapping[str, int]) -> str:
    if list(groups) == [NO_SITE]:
        return (
            '<p class="soft small">No sites were given: a column <code>site</code> in the participants table '
            "colours the scans.</p>\n"
        )
    return key([(mark(n, 8, 6), markup.text(site)) for site, n in groups.items()]) + "\n"


# Ages


def _ages(
    members: Sequence[Member], groups: Mapping[str, int], training: tuple[float, float] | None
) -> list[str]:
    ages = np.array([[m.predicted, m.known] for m in members], np.float64)
    gaps = ages[:, 0] - ages[:, 1]
    mean, spread = float(gaps.mean()), float(gaps.std(ddof=1))
    beyond = sum(not training[0] <= age <= training[1] for age in ages[:, 1]) if training else 0
    note = ""
    if training:
        note = f" The network was trained on ages {training[0]:g} to {training[1]:g}"
        lie = "lies" if beyond == 1 else "lie"
        note += f"; {beyond} of the {len(ages)} known ages here {lie} outside." if beyond else "."
    plots = (
        ("Predicted and known age</strong>", _predicted(members, groups)),
        (
            "Bland-Altman</strong>: difference against mean of both",
            _bland_altman(members, groups, mean, spread),
        ),
        ("Brain-PAD by site</strong>", _by_site(members, groups)),
        _by_age(members, groups),
    )
    return [
        "<h2>Ages</h2>\n",
        '<p class="soft small">Brain-PAD is the predicted age (the corrected one where there is one) minus '
        f"the known age, in years.{note}</p>\n",
        _table(members, groups),
        _sites_key(groups) if list(groups) != [NO_SITE] else "",
        '<div class="plots">\n',
        *(
            f'<figure class="card"><figcaption><strong>{title}</figcaption>{drawn}</figure>\n'
            for title, drawn in plots
        ),
        "</div>\n",
        '<p class="soft small">Bland-Altman (Bland &amp; Altman 1986): the lines are the mean difference and '
        "the limits of agreement, 1.96 standard deviations to either side. A brain-PAD that falls with age "
        "is what regression to the mean of the training cohort gives; it says nothing about health.</p>\n",
    ]


def _predicted(members: Sequence[Member], groups: Mapping[str, int]) -> str:
    points = [Point(m.known or 0.0, m.predicted or 0.0, groups[m.site], _says(m)) for m in members]
    low = min(min(p.x, p.y) for p in points)
    high = max(max(p.x, p.y) for p in points)
    ends = (low - 0.05 * (high - low) - 1, high + 0.05 * (high - low) + 1)
    return scatter(
        points,
        f"Predicted against known age of {len(points)} scans",
        ("known age, years", "predicted age, years"),
        [Line(ends, ends, True, "equal")],
        (ends, ends),
    )


def _bland_altman(members: Sequence[Member], groups: Mapping[str, int], mean: float, spread: float) -> str:
    points = [
        Point(((m.known or 0.0) + (m.predicted or 0.0)) / 2, m.gap, groups[m.site], _says(m)) for m in members
    ]
    low, high = min(p.x for p in points), max(p.x for p in points)
    edge = 0.08 * (high - low) or 1.0
    ends = (low - edge, high + edge)
    levels = ((mean, "mean", False), (mean - 1.96 * spread, "", True), (mean + 1.96 * spread, "", True))
    lines = [
        Line(ends, (y, y), dashed, f"{word} {_signed(y)}".strip() if word else _signed(y))
        for y, word, dashed in levels
    ]
    return scatter(
        points,
        f"Bland-Altman plot: mean difference {mean:.1f}, limits of agreement {mean - 1.96 * spread:.1f} to "
        f"{mean + 1.96 * spread:.1f} years",
        ("mean of predicted and known age, years", "predicted \u2212 known, years"),
        lines,
    )


def _by_site(members: Sequence[Member], groups: Mapping[str, int]) -> str:
    shown = [site for site in groups if any(m.site == site for m in members)]
    marks, lines = [], []
    for place, site in enumerate(shown):
        gaps = sorted(((m.gap, m) for m in members if m.site == site), key=lambda one: one[0])
        for n, (gap, member) in enumerate(gaps):
            aside = 0.5 * (((n * 0.618034) % 1) - 0.5)  # spread without chance: points do not hide each other
            marks.append(Point(place + aside, gap, groups[site], _says(member)))
        mean = sum(gap for gap, _ in gaps) / len(gaps)
        lines.append(Line((place - 0.34, place + 0.34), (mean, mean)))
    ends = (-0.6, len(shown) - 0.4)
    low, high = min(p.y for p in marks), max(p.y for p in marks)
    edge = 0.06 * (high - low) + 0.5
    ticks = [(float(n), site if len(site) <= 14 else site[:13] + "\u2026") for n, site in enumerate(shown)]
    return scatter(
        marks,
        f"Brain-PAD of {len(marks)} scans at {len(shown)} sites, with each site's mean",
        ("site (line: mean)", "brain-PAD, years"),
        [Line(ends, (0.0, 0.0), True), *lines],
        (ends, (min(low - edge, -1.0), max(high + edge, 1.0))),
        ticks if len(ticks) <= 6 else [],
    )


def _by_age(members: Sequence[Member], groups: Mapping[str, int]) -> tuple[str, str]:
    """The caption from its first bold words on, and the plot."""
    points = [Point(m.known or 0.0, m.gap, groups[m.site], _says(m)) for m in members]
    x, y = np.array([[p.x, p.y] for p in points]).T
    ends = (float(x.min()), float(x.max()))
    lines = [Line(ends, (0.0, 0.0), True)]
    says = ""
    if ends[1] - ends[0] > 1:
        slope, start = (float(v) for v in np.polyfit(x, y, 1))
        lines.append(Line(ends, (start + slope * ends[0], start + slope * ends[1])))
        says = f": least-squares slope {_signed(slope, 2)} a year"
    drawn = scatter(
        points,
        f"Brain-PAD against known age of {len(points)} scans{says}",
        ("known age, years", "brain-PAD, years"),
        lines,
    )
    return f"Brain-PAD by age</strong>{says}", drawn


def _table(members: Sequence[Member], groups: Mapping[str, int]) -> str:
    heads = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (
            ("Site", ""),
            *(
                (n, _NUMBER)
                for n in ("Scans", "Known age, mean", "MAE", "Mean PAD", "SD of PAD", "Pearson r")
            ),
        )
    )
    rows = [(site, [m for m in members if m.site == site]) for site in groups]
    rows = [row for row in rows if row[1]]
    if len(rows) > 1:
        rows.append(("all", list(members)))
    body = "".join(_row(site, found) for site, found in rows)
    return (
        f'<div class="scroll"><table class="sites"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
        '<p class="soft small">In years. MAE: mean absolute error.</p>\n'
    )


def _row(site: str, members: Sequence[Member]) -> str:
    gaps = np.array([m.gap for m in members])
    known = np.array([m.known for m in members], np.float64)
    predicted = np.array([m.predicted for m in members], np.float64)
    r = float("nan")
    # Not their standard deviations: that of equal values is rarely 0 in floats.
    if len(members) >= FEWEST and np.ptp(known) > 0 and np.ptp(predicted) > 0:
        r = float(np.corrcoef(known, predicted)[0, 1])
    cells = (
        f"{len(members)}",
        f"{known.mean():.1f}",
        f"{np.abs(gaps).mean():.1f}",
        _signed(float(gaps.mean())),
        f"{gaps.std(ddof=1):.1f}" if len(gaps) > 1 else "",
        f"{r:.2f}".replace("-", "\u2212") if math.isfinite(r) else "",
    )
    numbers = "".join(f"<td{_NUMBER}>{cell}</td>" for cell in cells)
    return f'<tr><td><span class="name">{markup.text(site)}</span></td>{numbers}</tr>'


def _says(member: Member) -> str:
    return f"{member.name}, {member.site}: predicted {member.predicted:.1f}, known {member.known:.1f}"


def _signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")
