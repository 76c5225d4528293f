"""Numbers of a table: errors, correlations and areas, each with a bootstrap interval over subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hz_train.scores import RESAMPLES, auc, bootstrap, subject_rows
from hz_train.studies.floors import Blocks, Raw
from hz_train.studies.predictors import RIDGE
from hz_train.studies.record import Column, Metric, Prediction, Row

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

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
    rows = subject_rows(subjects)
    error = np.abs(p - t)
    found = {
        "mae": mean_metric([float(error[r].mean()) for r in rows]),
        "mse": mean_metric([float(np.square(error[r]).mean()) for r in rows]),
        "r": correlation(t, p, rows),
    }
    if raw is not None:
        change = error - np.abs(np.asarray(raw, np.float64) - t)
        found["change"] = mean_metric([float(change[r].mean()) for r in rows])
    return found


def mean_metric(values: Sequence[float] | F64) -> Metric:
    """Mean of one value a subject; of a single subject without an interval."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Metric(float(array.mean()))
    low, high = bootstrap(lambda i: float(array[i].mean()), len(array))
    return Metric(float(array.mean()), (low, high))


def correlation(x: F64, y: F64, rows: Sequence[I64]) -> Metric:
    """Pearson r over scans; resampled by subject, `rows` being each one's scans."""
    # r of a resample needs only sums over its subjects; centred, so that no digits are lost.
    x, y = x - x.mean(), y - y.mean()
    parts = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)
    sums = np.stack([parts[r].sum(0) for r in rows])

    def statistic(index: I64) -> float:
        n, sx, sy, sxx, syy, sxy = sums[index].sum(0)
        vx, vy = sxx - sx * sx / n, syy - sy * sy / n
        if vx <= 1e-12 * n or vy <= 1e-12 * n:
            return float("nan")  # not defined, so left out of the interval
        return float((sxy - sx * sy / n) / np.sqrt(vx * vy))

    if len(rows) < 3 or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:  # two points always lie on a line
        return Metric(None)
    low, high = bootstrap(statistic, len(rows))
    return Metric(statistic(np.arange(len(rows))), (low, high))


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
    rows = subject_rows(subjects)
    labels = np.array([np.asarray(truth)[r].mean() > 0.5 for r in rows])
    score = np.array([np.asarray(predicted, np.float64)[r].mean() for r in rows])
    if labels.all() or not labels.any():
        return {"auc": Metric(None)}
    known = min(labels.sum(), (~labels).sum()) > 1
    areas = _resampled_areas(labels, score)
    found = {"auc": Metric(auc(score, labels), _interval(areas) if known else None)}
    if raw is not None:
        before = np.array([np.asarray(raw, np.float64)[r].mean() for r in rows])
        # Seeded alike, so that both resample the same subjects.
        changes = areas - _resampled_areas(labels, before)
        found["change"] = Metric(
            auc(score, labels) - auc(before, labels), _interval(changes) if known else None
        )
    return found


def _wins(labels: NDArray[np.bool_], scores: F64) -> F64:
    """(positives, negatives): 1 where the positive's score is higher, a half where they tie.

    `scores.auc` is its mean; a resample is the mean with other weights, all of them in one product.
    """
    gaps = scores[labels][:, None] - scores[~labels][None, :]
    return (gaps > 0) + 0.5 * (gaps == 0)


def _resampled_areas(labels: NDArray[np.bool_], scores: F64) -> F64:
    """(RESAMPLES,) areas of subjects drawn with replacement within each label."""
    rng = np.random.default_rng(0)
    wins = _wins(labels, scores)
    counts = [rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in wins.shape]
    areas: F64 = np.einsum("rp,pn,rn->r", counts[0], wins, counts[1], optimize=True) / wins.size
    return areas


def _interval(values: F64) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


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
    baselines: Mapping[str, str],
    how: str,
) -> list[Row]:
    """Rows of (method, columns, seed) groups of predictions, in the order in which they first appear.

    tested : a row's site, and the sites whose scans it takes together; those without scans give no row.
    baselines : by method, the one that its `change` is measured against, on the same scans.
    """
    groups: dict[tuple[object, ...], list[Prediction]] = {}
    for p in predictions:
        groups.setdefault(_group(p, p.method), []).append(p)
    rows = []
    for group in groups.values():
        first = group[0]
        before = groups.get(_group(first, baselines.get(first.method, "")))
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


def baselines(predictions: Sequence[Prediction]) -> dict[str, str]:
    """What each method's `change` is measured against: the same predictor's rows on scans as they are."""
    features = {p.method for p in predictions if p.columns.get("predictor") == RIDGE}
    return {p.method: Blocks.name if p.method in features else Raw.name for p in predictions}


def _group(prediction: Prediction, method: str) -> tuple[object, ...]:
    return (method, prediction.seed, *sorted(prediction.columns.items()))
