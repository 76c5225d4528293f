"""A scan's predictions as the report shows them: the columns of its table, and the facts of its panel.

Everything given back is HTML. `labels` is run.json's "diagnosis" (negative and positive label), empty for a
bundle that holds no diagnosis network; then nothing of one is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hz_runtime import markup

Labels = Mapping[str, Any]


def columns(labels: Labels) -> list[str]:
    """Heads of the columns that `cells` fills."""
    return ["Age, raw", "corrected", "known", "difference", *([_probability_of(labels)] if labels else [])]


def cells(scan: Mapping[str, Any], labels: Labels) -> list[str]:
    """Raw, corrected and known age, what the best prediction differs from the known one by, and how probable
    the positive label is."""
    raw, corrected, known = (markup.number(scan.get(key)) for key in ("age_raw", "age_corrected", "age"))
    predicted = raw if corrected is None else corrected
    gap = "" if predicted is None or known is None else f"{predicted - known:+.1f}"
    ages = (markup.fixed(age, 1) for age in (raw, corrected, known))
    return [*ages, gap, *([_probability(scan)] if labels else [])]


def facts(scan: Mapping[str, Any], labels: Labels) -> list[tuple[str, str]]:
    """(name, value) of every prediction of a scan; "" where there is none."""
    return [
        ("Age, raw", markup.years(scan.get("age_raw"))),
        ("Age, corrected", markup.years(scan.get("age_corrected"))),
        ("Known age", markup.years(scan.get("age"))),
        *([(_probability_of(labels), _probability(scan))] if labels else []),
    ]


def explained(labels: Labels) -> str:
    """What the columns mean."""
    ages = (
        "Ages in years. The corrected age has the bias of the age model towards the mean age of its training "
        "cohort taken out; the difference is predicted minus known age."
    )
    if not labels:
        return ages
    negative, positive = (markup.text(labels.get(key)) for key in ("negative", "positive"))
    return (
        f"{ages} The probability is the network's, of {positive} rather than {negative}, where both are as "
        "common as in its training cohort. It diagnoses nobody."
    )


def _probability(scan: Mapping[str, Any]) -> str:
    return markup.fixed(scan.get("diagnosis_probability"), 2)


def _probability_of(labels: Labels) -> str:
    return f"Probability of {markup.text(labels.get('positive'))}"
