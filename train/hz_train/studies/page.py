"""The page of a study: one self-contained HTML file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hz_runtime.io.atomic import atomic_write_bytes
from hz_runtime.report import markup
from hz_runtime.report.page import page
from hz_train.studies.result import Column, Figure, Metric, Row, StudyResult, Table

NOTICE = (
    "Research use only. The numbers hold for this cohort and these settings, and for nothing beyond them."
)
EXTRA_STYLE = """
td.best { font-weight: 700; }
td .ends { color: var(--soft); font-size: .86em; font-weight: 400; }
.study img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
.study figure { margin: 0 0 1.4rem; }
.study pre { overflow-x: auto; font-size: .84rem; }
"""


def write_page(result: StudyResult, out: Path) -> Path:
    """Write STUDY.html into a folder that is there; returns its path. Raises HzError where it cannot be."""
    path = out / f"{result.study}.html"
    atomic_write_bytes(path, render(result).encode())
    return path


def render(result: StudyResult) -> str:
    """The page as text."""
    parts = [
        f"<header>\n<h1>{markup.text(result.title)}</h1>\n",
        f'<p class="lead">{markup.text(result.question)}</p>\n<p class="notice">{NOTICE}</p>\n</header>\n',
        '<main class="study">\n',
    ]
    if result.remarks:
        items = "".join(f"<li>{markup.text(remark)}</li>" for remark in result.remarks)
        parts.append(f"<h2>How to read it</h2>\n<ul>{items}</ul>\n")
    for table in result.tables:
        parts += _table(table)
    if result.figures:
        parts += ["<h2>Figures</h2>\n", *(_figure(figure) for figure in result.figures)]
    parts += ["<h2>Cohort and settings</h2>\n", *_cohort(result.cohort), _settings(result.settings)]
    parts.append("</main>\n")
    return page(markup.text(result.title), "".join(parts), more_style=EXTRA_STYLE)


def _table(table: Table) -> list[str]:
    shown, single = _leading(table.rows)
    parts = [f"<h2>{markup.text(table.title)}</h2>\n<p>{markup.text(table.caption)}</p>\n"]
    parts.append(_rows(table.columns, shown))
    if single:
        parts += [
            "<details><summary>Every seed by itself</summary>",
            _rows(table.columns, single),
            "</details>\n",
        ]
    hows = list(dict.fromkeys(row.how for row in table.rows if row.how))
    if hows:
        parts.append(f'<p class="soft small">{markup.text("; ".join(hows))}.</p>\n')
    return parts


def _leading(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(rows of the table, rows of its details): with summaries, the single seeds are details."""
    summaries = [row for row in rows if row.seed is None]
    return (summaries, [row for row in rows if row.seed is not None]) if summaries else (list(rows), [])


def _rows(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    extra = list(dict.fromkeys(key for row in rows for key in row.columns))
    with_seed = any(row.seed is not None for row in rows)
    used = [c for c in columns if any(c.name in row.metrics for row in rows)]
    heads = ["Tested on", *(k.capitalize() for k in extra), "Method", *(["Seed"] if with_seed else [])]
    cells = "".join(f'<th scope="col">{markup.text(head)}</th>' for head in heads)
    cells += '<th scope="col" class="num">Subjects</th>'
    cells += "".join(f'<th scope="col" class="num">{_head(column)}</th>' for column in used)
    best = _best(used, rows)
    # Rows that are compared stand together, whatever order they were found in.
    order = {place: k for k, place in enumerate(dict.fromkeys(map(_place, rows)))}
    body = []
    for row in sorted(rows, key=lambda r: order[_place(r)]):
        first = [row.site, *(row.columns.get(key, "") for key in extra), row.method]
        if with_seed:
            first.append("" if row.seed is None else str(row.seed))
        line = "".join(f"<td>{markup.text(cell)}</td>" for cell in first)
        line += f'<td class="num">{row.n}</td>' + "".join(_cell(c, row, best) for c in used)
        body.append(f"<tr>{line}</tr>\n")
    return (
        f'<div class="scroll"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{"".join(body)}</tbody>\n'
        "</table></div>\n"
    )


def _place(row: Row) -> tuple[object, ...]:
    """What is tested: rows of one place differ by method."""
    return (row.site, row.seed, *sorted((k, v) for k, v in row.columns.items() if k != "predictor"))


def _head(column: Column) -> str:
    unit = f", {column.unit}" if column.unit else ""
    arrow = {"lower": " ↓", "higher": " ↑"}.get(column.better, "")
    return markup.text(f"{column.title}{unit}{arrow}")


def _best(columns: Sequence[Column], rows: Sequence[Row]) -> set[tuple[str, int]]:
    """(column, id of row) of the best values among the rows of one place, as they are shown.

    Ties are all best; where all tie, none is.
    """
    found = set()
    for column in columns:
        places: dict[tuple[object, ...], list[tuple[float, int]]] = {}
        for row in rows if column.better else ():
            value = row.metrics.get(column.name, Metric(None)).value
            if value is not None:
                places.setdefault(_place(row), []).append((round(value, column.digits), id(row)))
        for values in places.values():
            shown = [value for value, _ in values]
            best = min(shown) if column.better == "lower" else max(shown)
            if min(shown) < max(shown):
                found |= {(column.name, row) for value, row in values if value == best}
    return found


def _cell(column: Column, row: Row, best: set[tuple[str, int]]) -> str:
    metric = row.metrics.get(column.name)
    if metric is None or metric.value is None:
        return '<td class="num soft">n/a</td>' if metric else '<td class="num"></td>'
    kind = "num best" if (column.name, id(row)) in best else "num"
    ends = metric.ci95 or metric.range
    span = ""
    if ends:
        low, high = (_shown(end, column) for end in ends)
        opening, closing = "()" if metric.ci95 else "[]"
        span = f' <span class="ends">{opening}{low} to {high}{closing}</span>'
    return f'<td class="{kind}">{_shown(metric.value, column)}{span}</td>'


def _shown(value: float, column: Column) -> str:
    return markup.fixed(round(value, column.digits) + 0.0, column.digits)  # + 0.0: never "-0.00"


def _figure(figure: Figure) -> str:
    kind = {"png": "image/png", "svg": "image/svg+xml"}[figure.kind]
    data = base64.b64encode(figure.data).decode()
    title = markup.text(figure.title)
    return (
        f"<figure>\n<h3>{title}</h3>\n"
        f'<img alt="{title}" src="data:{kind};base64,{data}">\n'
        f"<figcaption>{markup.text(figure.caption)}</figcaption>\n</figure>\n"
    )


def _cohort(cohort: Mapping[str, Any]) -> list[str]:
    sites = markup.mapping(cohort.get("sites"))
    if not sites:
        return []
    lines = []
    for name, facts in sites.items():
        ages = markup.sequence(facts.get("age_range"))
        span = f"{markup.fixed(ages[0], 1)} to {markup.fixed(ages[1], 1)}" if ages else "n/a"
        lines.append(
            f"<tr><td>{markup.text(name)}</td>"
            f'<td class="num">{markup.text(facts.get("subjects"))}</td>'
            f'<td class="num">{markup.text(facts.get("scans"))}</td><td class="num">{span}</td></tr>\n'
        )
    return [
        '<div class="scroll"><table>\n<thead><tr><th scope="col">Site</th>',
        '<th scope="col" class="num">Subjects</th><th scope="col" class="num">Scans</th>',
        f'<th scope="col" class="num">Ages, years</th></tr></thead>\n<tbody>\n{"".join(lines)}</tbody>\n',
        "</table></div>\n",
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in settings.items() if not isinstance(v, Mapping)}
    rows = "".join(f"<dt>{markup.words(k)}</dt><dd>{markup.text(_plain(v))}</dd>" for k, v in plain.items())
    nested = "".join(
        f"<dt>{markup.text(name)}</dt><dd>{markup.text(_plain(value))}</dd>"
        for name, value in _leaves({k: v for k, v in settings.items() if isinstance(v, Mapping)})
    )
    more = f"<details><summary>All parameters</summary><dl>{nested}</dl></details>\n" if nested else ""
    return f"<dl>{rows}</dl>\n{more}"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found += _leaves(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return "none" if value is None else value
