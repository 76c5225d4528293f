"""A scan's predictions as the report shows them: the columns of its table, and the facts of its panel.

Everything given back is HTML. `labels` is run.json's "diagnosis" (negative and positive label), empty for a
bundle that holds no diagnosis network; then nothing of one is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hz_runtime.report import markup

Labels = Mapping[str, Any]


def columns(labels: Labels, interval: str = "") -> list[str]:
    """Heads of the columns that `cells` fills. interval : name of the age's; "" where no scan has one."""
    limits = [interval] if interval else []
    last = [_probability_of(labels)] if labels else []
    return ["Age, raw", "corrected", *limits, "known", "difference", *last]


def cells(scan: Mapping[str, Any], labels: Labels, interval: str = "") -> list[str]:
    """Raw and corrected age, its interval, the known age, what the best prediction differs from it by, and
    how probable the positive label is."""
    raw, corrected, known = (markup.number(scan.get(key)) for key in ("age_raw", "age_corrected", "age"))
    predicted = raw if corrected is None else corrected
    gap = "" if predicted is None or known is None else f"{round(predicted - known, 1) + 0.0:+.1f}"
    limits = [_limits(scan)] if interval else []
    return [
        markup.fixed(raw, 1),
        markup.fixed(corrected, 1),
        *limits,
        markup.fixed(known, 1),
        gap,
        *([_probability(scan)] if labels else []),
    ]


def facts(scan: Mapping[str, Any], labels: Labels, interval: str = "Interval") -> list[tuple[str, str]]:
    """(name, value) of every prediction of a scan; "" where there is none."""
    limits = _limits(scan)
    return [
        ("Age, raw", markup.years(scan.get("age_raw"))),
        ("Age, corrected", markup.years(scan.get("age_corrected"))),
        (interval, f"{limits} years" if limits else ""),
        ("Known age", markup.years(scan.get("age"))),
        *([(_probability_of(labels), _probability(scan))] if labels else []),
    ]


def column_legend(labels: Labels, interval: str = "") -> str:
    """What the columns mean."""
    ages = (
        "Ages in years. The corrected age has the bias of the age model towards the mean age of its training "
        "cohort taken out; the difference is predicted minus known age."
    )
    if interval:
        ages += (
            f" The {interval} is meant to hold that share of the true ages of people and scans like those "
            "that it was calibrated on."
        )
    if not labels:
        return ages
    negative, positive = (markup.text(labels.get(key)) for key in ("negative", "positive"))
    return (
        f"{ages} The probability is the network's, of {positive} rather than {negative}, where both are as "
        "common as in its training cohort. It diagnoses nobody."
    )


def _limits(scan: Mapping[str, Any]) -> str:
    ends = [markup.fixed(end, 1) for end in markup.sequence(scan.get("age_interval"))]
    return f"{ends[0]} to {ends[1]}" if len(ends) == 2 and all(ends) else ""


def _probability(scan: Mapping[str, Any]) -> str:
    return markup.fixed(scan.get("diagnosis_probability"), 2)


def _probability_of(labels: Labels) -> str:
    return f"Probability of {markup.text(labels.get('positive'))}"
