"""Scores with confidence intervals: bootstrap over subjects, seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
RESAMPLES = 2000


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], n: int, seed: int = 0) -> list[float]:
    """95 % percentile interval of a statistic of subject indices, each (n,) drawn with replacement.

    Resamples for which the statistic is nan are left out; [nan, nan] where none is left.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if values.size else (np.nan, np.nan)
    return [float(low), float(high)]


def score(values: Sequence[float], how: str, seed: int = 0) -> dict[str, Any]:
    """Mean of one value a subject with its interval, count and provenance, as checkpoints store scores."""
    array = np.asarray(values, np.float64)
    return {
        "value": float(array.mean()),
        "ci95": bootstrap(lambda i: float(array[i].mean()), len(array), seed),
        "n": len(array),
        "how": how,
    }


def auc(values: F64, positive: NDArray[np.bool_], weights: F64 | None = None) -> float:
    """Area under the ROC curve: how often a positive scan's value is above a negative one's; ties count half.

    values : (n,).  positive : (n,) bool.  weights : (n,) how much each scan counts, 1 by default.
    nan where one of the two is missing. The rank statistic of Mann and Whitney, over weights.
    """
    given = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    levels, place = np.unique(values, return_inverse=True)
    above = np.bincount(place, given * positive, levels.size)
    below = np.bincount(place, given * ~positive, levels.size)
    pairs = float(above.sum() * below.sum())
    if pairs == 0:
        return float("nan")
    return float(above @ (np.cumsum(below) - below / 2)) / pairs


def diagnosis_scores(
    positive: NDArray[np.bool_], probability: F64, subjects: Sequence[str], how: str
) -> dict[str, Any]:
    """AUC of held-out predictions, and accuracy at a probability of one half; intervals over subjects.

    positive, probability : (n,), one a scan.  subjects : (n,) who was scanned.
    """
    rows = subject_rows(subjects)
    right = (probability >= 0.5) == positive

    def area(index: NDArray[np.int64]) -> float:
        picked = np.concatenate([rows[i] for i in index])
        return auc(probability[picked], positive[picked])

    return {
        "auc": {
            "value": area(np.arange(len(rows))),
            "ci95": bootstrap(area, len(rows)),
            "n": len(rows),
            "how": how,
        },
        "accuracy": score([float(right[r].mean()) for r in rows], how),
        "accuracy_of_the_larger_group": score(
            [float((positive[r] == (positive.mean() >= 0.5)).mean()) for r in rows], how
        ),
    }


def subject_rows(subjects: Sequence[str]) -> list[NDArray[np.int64]]:
    """The rows of each subject's scans, subjects in order of name."""
    return [np.flatnonzero(np.asarray(subjects) == name) for name in sorted(set(subjects))]


def age_scores(ages: F64, raw: F64, subjects: Sequence[str], how: str) -> dict[str, Any]:
    """MAE, MSE and Pearson r of held-out predictions, with the MAE of predicting the mean age beside them.

    Intervals resample subjects, not scans, so that rescans do not count twice.
    """
    rows = subject_rows(subjects)
    error = np.abs(raw - ages)
    mean_error = np.abs(ages - ages.mean())
    by_subject = [float(error[r].mean()) for r in rows]

    def correlation(index: NDArray[np.int64]) -> float:
        picked = np.concatenate([rows[i] for i in index])
        if np.std(ages[picked]) == 0 or np.std(raw[picked]) == 0:
            return 0.0
        return float(np.corrcoef(ages[picked], raw[picked])[0, 1])

    everyone = np.arange(len(rows))
    return {
        "mae_years": score(by_subject, how),
        "mse_years2": score([float((error[r] ** 2).mean()) for r in rows], how),
        "mae_of_predicting_the_mean_age": score([float(mean_error[r].mean()) for r in rows], how),
        "pearson_r": {
            "value": correlation(everyone),
            "ci95": bootstrap(correlation, len(rows)),
            "n": len(rows),
            "how": how,
        },
    }
