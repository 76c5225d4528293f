"""Scores with confidence intervals: bootstrap over subjects, never over scans, seeded.

Rescans of one person are not independent; they are drawn together (Field & Welsh 2007, bootstrap of
clusters). A statistic is therefore a function of weights, one a scan: how often its subject was drawn. The
scores of checkpoints and the tables of studies both come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]
Subjects = Sequence[str] | NDArray[np.int64]
Statistic = Callable[[F64], F64]  # from weights (n,) to (m,) numbers, nan where they hold too little
# A number and its 95 % interval; None for what is not defined.
Estimate = tuple[float | None, tuple[float, float] | None]

RESAMPLES = 2000
LEAST_SD = 1e-5  # years; below it, ages vary by the rounding of float32 at most


def draws(
    subjects: Subjects,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int | Sequence[int] = 0,
) -> Iterator[F64]:
    """Weights (n,) float64 of every resample: how often each scan's subject was drawn, with replacement.

    subjects : (n,) who was scanned.  strata : (n,), one a subject; each stratum keeps its number of subjects.
    Nothing is drawn where a stratum is a single subject, which would seem not to vary.
    """
    names, first, code = np.unique(np.asarray(subjects), return_index=True, return_inverse=True)
    part = np.zeros(names.size) if strata is None else np.asarray(strata)[first]
    groups = [np.flatnonzero(part == kind) for kind in np.unique(part)]
    if min((group.size for group in groups), default=0) < 2:
        return
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        times = np.zeros(names.size)
        for group in groups:
            times[group] = np.bincount(rng.integers(0, group.size, group.size), minlength=group.size)
        yield times[code]


def interval(values: ArrayLike) -> tuple[float, float] | None:
    """95 % percentile interval (Efron & Tibshirani 1993) of the finite ones of (n,) values; None without."""
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    if not array.size:
        return None
    low, high = np.percentile(array, [2.5, 97.5])
    return float(low), float(high)


def estimates(
    statistic: Statistic,
    subjects: Subjects,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int | Sequence[int] = 0,
) -> list[Estimate]:
    """What the statistic says of the cohort as it is, each of its m numbers with its interval.

    Arguments as in `draws`. Resamples without a finite number are left out of its interval.
    """
    drawn = [statistic(weights) for weights in draws(subjects, strata, resamples, seed)]
    return [
        (float(value), interval([numbers[k] for numbers in drawn])) if np.isfinite(value) else (None, None)
        for k, value in enumerate(statistic(np.ones(len(subjects))))
    ]


def mean(values: Sequence[float] | F64) -> Estimate:
    """Mean of one value a subject."""
    array = np.asarray(values, np.float64)
    return estimates(lambda w: np.array([w @ array / w.sum()]), np.arange(array.size))[0]


def by_subject(values: ArrayLike, subjects: Subjects) -> F64:
    """(n,) values, one a scan, to (subjects,): each one's mean, in order of name."""
    _, code = np.unique(np.asarray(subjects), return_inverse=True)
    return np.bincount(code, np.asarray(values, np.float64)) / np.bincount(code)


def correlation(x: F64, y: F64, subjects: Subjects) -> Estimate:
    """Pearson r over (n,) scans; None for fewer than three subjects, or where x or y does not vary."""
    if np.unique(np.asarray(subjects)).size < 3:  # two points always lie on a line
        return None, None
    # Sums are enough for r of a resample; centred, so that no digits are lost.
    x, y = x - x.mean(), y - y.mean()
    parts = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y])

    def statistic(weights: F64) -> F64:
        n, sx, sy, sxx, syy, sxy = parts @ weights
        vx, vy = sxx - sx * sx / n, syy - sy * sy / n
        if not (vx > LEAST_SD**2 * n and vy > LEAST_SD**2 * n):
            return np.array([np.nan])
        return np.array([(sxy - sx * sy / n) / np.sqrt(vx * vy)])

    return estimates(statistic, subjects)[0]


def auc(values: F64, positive: Flags, weights: F64 | None = None) -> float:
    """Area under the ROC curve: how often a positive scan's value is above a negative one's; ties count half.

    values : (n,).  positive : (n,) bool.  weights : (n,) how much each scan counts, 1 by default.
    nan where one of the two is missing, or where a value is nan. The rank statistic of Mann and Whitney, over
    weights.
    """
    given = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    levels, place = np.unique(values, return_inverse=True)
    above = np.bincount(place, given * positive, levels.size)
    below = np.bincount(place, given * ~positive, levels.size)
    pairs = float(above.sum() * below.sum())
    if pairs == 0 or np.isnan(levels).any():
        return float("nan")
    return float(above @ (np.cumsum(below) - below / 2)) / pairs


def areas(
    positive: ArrayLike, values: ArrayLike, subjects: Subjects, before: ArrayLike | None = None
) -> list[Estimate]:
    """AUC of (n,) values, and, with `before` (n,), its difference from the AUC of those.

    positive : (n,) 0 or 1. A subject's scans are averaged first. Intervals resample subjects within each
    label, so that every resample holds both, and take the same for both areas of a difference. None where a
    label is missing.
    """
    labels = by_subject(positive, subjects) > 0.5
    columns = [by_subject(v, subjects) for v in (values, before) if v is not None]

    def statistic(weights: F64) -> F64:
        found = [auc(column, labels, weights) for column in columns]
        return np.array([found[0], *(found[0] - area for area in found[1:])])

    return estimates(statistic, np.arange(labels.size), strata=labels)


def score(values: Sequence[float] | F64, how: str) -> dict[str, Any]:
    """Mean of one value a subject with its interval, count and provenance, as checkpoints store scores."""
    return _stored(mean(values), len(values), how)


def diagnosis_scores(positive: Flags, probability: F64, subjects: Sequence[str], how: str) -> dict[str, Any]:
    """AUC of held-out predictions, and accuracy at a probability of one half; intervals over subjects.

    positive, probability : (n,), one a scan.  subjects : (n,) who was scanned.
    The larger group is that of the scored subjects: found without each one in turn, it would be the wrong one
    for everybody where both are equally large.
    """
    right = by_subject((probability >= 0.5) == positive, subjects)
    share = by_subject(positive, subjects)
    larger = share if share.mean() >= 0.5 else 1 - share
    return {
        "auc": _stored(areas(positive, probability, subjects)[0], share.size, how),
        "accuracy": score(right, how),
        "accuracy_of_the_larger_group": score(larger, how),
    }


def age_scores(ages: F64, raw: F64, subjects: Sequence[str], how: str) -> dict[str, Any]:
    """MAE, MSE and Pearson r of (n,) held-out predictions, and the MAE of the mean age of everybody else.

    Errors are averaged within a subject, then over subjects. A subject's own scans are no part of the mean
    age that it is judged by; a single subject has none.
    """
    error = by_subject(np.abs(raw - ages), subjects)
    squared = by_subject(np.square(raw - ages), subjects)
    without = by_subject(np.abs(_mean_of_others(ages, subjects) - ages), subjects)
    return {
        "mae_years": score(error, how),
        "mse_years2": score(squared, how),
        "mae_of_predicting_the_mean_age": score(without, how),
        "pearson_r": _stored(correlation(ages, raw, subjects), error.size, how),
    }


def _mean_of_others(values: F64, subjects: Sequence[str]) -> F64:
    """(n,) means over the scans of all subjects but each scan's own; nan where there is no other."""
    _, code, scans = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)
    others = np.where(scans < len(values), len(values) - scans, np.nan)
    means: F64 = (values.sum() - np.bincount(code, values)) / others
    return means[code]


def _stored(estimate: Estimate, n: int, how: str) -> dict[str, Any]:
    value, ends = estimate
    return {"value": value, "ci95": None if ends is None else list(ends), "n": n, "how": how}
