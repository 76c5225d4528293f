"""A scan's predictions as the report shows them: the columns of its table, and the facts of its panel.

Which there are and what they are called, `results.output_columns` says. A scan is an object of run.json, of
which anything may be missing or be something else. Everything given back is HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from hz_runtime.report import markup
from hz_runtime.results.output_columns import Row, RunOutputs, columns_of
from hz_runtime.results.prediction import Pair, Prediction

Scan = Mapping[str, Any]


def outputs_of(run: Mapping[str, Any]) -> RunOutputs:
    """What a run predicts; an interval of the age where one of its scans has one."""
    scans = (markup.mapping(scan) for scan in markup.sequence(run.get("scans")))
    return replace(RunOutputs.of(run), intervals=any(prediction_of(scan).age_interval for scan in scans))


def prediction_of(scan: Scan) -> Prediction:
    """What is said of a scan, without what is no finite number or no pair in order."""
    values = {one.name: scan.get(one.name) for one in fields(Prediction)}
    return Prediction.from_dict(
        {
            name: pair(value) if isinstance(value, (list, tuple)) else markup.number(value)
            for name, value in values.items()
        }
    )


def headings(run: RunOutputs) -> list[str]:
    """Heads of the columns that `cells` fills."""
    return [_named(column.heading, run) for column in columns_of(run) if column.heading]


def cells(scan: Scan, run: RunOutputs) -> list[str]:
    """What the table shows of a scan's predictions; "" where there is none."""
    row = _row(scan, run)
    return [markup.text(column.text(row)) for column in columns_of(run) if column.heading]


def facts(scan: Scan, run: RunOutputs) -> list[tuple[str, str]]:
    """(name, value) of the predictions in a scan's panel; "" where there is none."""
    row = _row(scan, run)
    found = []
    for column in columns_of(run):
        if column.fact:
            text = markup.text(column.text(row))
            found.append((_named(column.fact, run), f"{text}{column.after}" if text else ""))
    return found


def column_legend(run: RunOutputs) -> str:
    """What the columns mean."""
    return " ".join(_named(column.legend, run) for column in columns_of(run) if column.legend)


def pair(value: object) -> Pair | None:
    """(low, high), or None for anything else."""
    numbers = [markup.number(item) for item in markup.sequence(value)]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None or numbers[0] > numbers[1]:
        return None
    return numbers[0], numbers[1]


def _row(scan: Scan, run: RunOutputs) -> Row:
    quality = [markup.mapping(one) for one in markup.sequence(scan.get("quality"))]
    return Row(prediction_of(scan), markup.number(scan.get("age")), run, quality)


def _named(text: str, run: RunOutputs) -> str:
    return text.format(
        positive=markup.text(run.positive),
        negative=markup.text(run.negative),
        interval=run.interval_name,
        holds_for=run.holds_for,
    )
