"""Numbers of a table: errors, correlations and areas, each with a bootstrap interval over subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hz_train.scores import areas, by_subject, correlation, mean
from hz_train.studies.baselines import Blocks, Raw
from hz_train.studies.predictors import RIDGE
from hz_train.studies.result import Column, Metric, Prediction, Row

F64 = NDArray[np.float64]

AGE_COLUMNS = (
    Column("mae", "MAE", "years", 2, "lower"),
    Column("mse", "MSE", "years²", 1, "lower"),
    Column("r", "Pearson r", "", 3, "higher"),
    Column("change", "MAE minus raw", "years", 2, "lower"),
)
AUC_COLUMNS = (
    Column("auc", "AUC", "", 3, "higher"),
    Column("change", "AUC minus raw", "", 3, "higher"),
)


def age_metrics(
    truth: Sequence[float] | F64,
    predicted: Sequence[float] | F64,
    subjects: Sequence[str],
    raw: Sequence[float] | F64 | None = None,
) -> dict[str, Metric]:
    """mae (years), mse (years squared) and r of (n,) predictions, and change: MAE minus that of `raw`.

    raw : what was predicted for the same scans without harmonization; None leaves `change` out.
    Errors are averaged within a subject, then over subjects; intervals resample subjects, and those of
    `change` keep each subject's pair of errors together.
    r is None for fewer than three subjects, or where truth or predictions do not vary.
    """
    t, p = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    error = np.abs(p - t)
    found = {
        "mae": mean(by_subject(error, subjects)),
        "mse": mean(by_subject(np.square(error), subjects)),
        "r": correlation(t, p, subjects),
    }
    if raw is not None:
        change = error - np.abs(np.asarray(raw, np.float64) - t)
        found["change"] = mean(by_subject(change, subjects))
    return {name: Metric(*estimate) for name, estimate in found.items()}


def auc_metrics(
    truth: Sequence[float] | F64,
    predicted: Sequence[float] | F64,
    subjects: Sequence[str],
    raw: Sequence[float] | F64 | None = None,
) -> dict[str, Metric]:
    """auc of (n,) scores for labels 0 and 1, and change: AUC minus that of `raw` for the same scans.

    A subject's scans are averaged first. Intervals resample subjects within each label, so that every
    resample holds both; with a single subject of a label there is none. auc is None where a label is missing.
    """
    found = areas(truth, predicted, subjects, raw)
    return {name: Metric(*estimate) for name, estimate in zip(("auc", "change"), found, strict=False)}


def summarised(rows: Sequence[Row]) -> list[Row]:
    """The rows, each group that differs by seed alone led by one that summarises it: mean and range.

    Groups keep the order in which they first appear. A single seed needs no summary.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.site, *sorted(row.columns.items())), []).append(row)
    found: list[Row] = []
    for group in groups.values():
        if len(group) > 1:
            found.append(_summary(group))
        found += group
    return found


def _summary(rows: Sequence[Row]) -> Row:
    metrics: dict[str, Metric] = {}
    for name in rows[0].metrics:
        values = [row.metrics[name].value for row in rows if name in row.metrics]
        known = [v for v in values if v is not None]
        if known:
            metrics[name] = Metric(float(np.mean(known)), range=(min(known), max(known)))
        else:
            metrics[name] = Metric(None)
    first = rows[0]
    seeds = ", ".join(str(row.seed) for row in rows)
    how = f"mean over seeds {seeds}; range in brackets"
    # Splits of several seeds may differ by a subject or two: the number that every seed has at least.
    return Row(first.method, first.site, metrics, min(row.n for row in rows), None, how, first.columns)


Scorer = Callable[
    [Sequence[float] | F64, Sequence[float] | F64, Sequence[str], Sequence[float] | F64 | None],
    dict[str, Metric],
]


def scored(
    predictions: Sequence[Prediction],
    tested: Mapping[str, Sequence[str]],
    metrics: Scorer,
    counterparts: Mapping[str, str],
    how: str,
) -> list[Row]:
    """Rows of (method, columns, seed) groups of predictions, in the order in which they first appear.

    tested : a row's site, and the sites whose scans it takes together; those without scans give no row.
    counterparts : by method, the one that its `change` is measured against, on the same scans.
    """
    groups: dict[tuple[object, ...], list[Prediction]] = {}
    for p in predictions:
        groups.setdefault(_group(p, p.method), []).append(p)
    rows = []
    for group in groups.values():
        first = group[0]
        before = groups.get(_group(first, counterparts.get(first.method, "")))
        for label, sites in tested.items():
            those = [p for p in group if p.site in sites]
            if not those:
                continue
            raw = None
            if before is not None and before is not group:
                raw = [p.predicted for p in before if p.site in sites]
            subjects = [p.subject for p in those]
            found = metrics([p.truth for p in those], [p.predicted for p in those], subjects, raw)
            n = len(set(subjects))
            rows.append(Row(first.method, label, found, n, first.seed, how, first.columns))
    return rows


def raw_counterparts(predictions: Sequence[Prediction]) -> dict[str, str]:
    """What each method's `change` is measured against: the same predictor's rows on scans as they are."""
    features = {p.method for p in predictions if p.columns.get("predictor") == RIDGE}
    return {p.method: Blocks.name if p.method in features else Raw.name for p in predictions}


def _group(prediction: Prediction, method: str) -> tuple[object, ...]:
    return (method, prediction.seed, *sorted(prediction.columns.items()))
