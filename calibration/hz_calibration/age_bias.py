"""Age-bias correction: brain-age models pull everyone towards the mean age of their cohort.

The correction of Cole et al. 2018 (and Smith et al. 2019): fit raw ~ slope * age + intercept on held-out
predictions, then report (raw - intercept) / slope. Fitted on the training fit it would correct nothing,
since a network that has memorised its cohort shows no bias there. Lines go through scans; subjects are
counted and left out, each with all of its scans.

How much a correction helps is measured on subjects that it was not fitted on either: fitted and judged on the
same predictions, the slope would always come out as exactly 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.bundle.age_calibration import AgeBias
from hz_runtime.errors import UsageError

F64 = NDArray[np.float64]

LEAST_SLOPE = 0.2  # below it the correction multiplies a network's noise by more than five
LEAST_N = 10


@dataclass(frozen=True)
class RegressionToMean:
    """How far held-out predictions are pulled towards the mean age, and what the correction leaves of it.

    slope_before, slope_after : of predicted on true age, 1 where there is no pull; after: every subject
    corrected by coefficients fitted on all the others.
    mae_before, mae_after : mean absolute errors of the same predictions, years, within a subject first, as in
    the scores of a checkpoint. The correction takes out bias and widens noise by 1 / slope, so that it may
    well raise this error.
    n : subjects.
    """

    slope_before: float
    slope_after: float
    mae_before: float
    mae_after: float
    n: int

    def __str__(self) -> str:
        return (
            f"slope of predicted on true age {self.slope_before:.2f}, corrected {self.slope_after:.2f} "
            f"(1: no pull to the mean); mean error {self.mae_before:.2f} and {self.mae_after:.2f} years, "
            f"{self.n} held-out subjects"
        )


def fit_age_bias(
    ages: F64,
    held_out_predictions: F64,
    how: str,
    *,
    subjects: Sequence[str] | None = None,
    folds: Sequence[tuple[Collection[str], Collection[str]]] = (),
) -> AgeBias | None:
    """Least-squares fit of raw ~ slope * age + intercept.

    ages, held_out_predictions : (n,) years; every prediction from a model that never saw that subject.
    how : where the predictions come from, for the bundle.
    subjects : (n,) who was scanned; None where every scan is of another subject.
    folds : where that is known, for every predicting model the subjects that it predicted, and those that it
    was trained on.
    Returns None where a correction would do harm: fewer than 10 subjects, one single age, numbers that are
    not finite, or a slope under 0.2 (the prediction hardly depends on age).
    Raises UsageError for a prediction of a subject that the model was trained on, ValueError where `subjects`
    has another length.
    """
    for predicted, trained_on in folds:
        check_held_out(predicted, trained_on)
    n = len(np.unique(_people(subjects, ages)))
    if n < LEAST_N or np.ptp(ages) == 0 or not np.isfinite([ages, held_out_predictions]).all():
        return None
    slope, intercept = _line(ages, held_out_predictions)
    if slope < LEAST_SLOPE:
        return None
    return AgeBias(slope, intercept, n, how)


def from_held_out(kept: Mapping[str, Any]) -> tuple[AgeBias | None, RegressionToMean | None]:
    """`fit_age_bias` and `regression_to_mean` of what a checkpoint keeps: "age" and "raw", "how", and, where
    training has written them, "subjects", and "folds" with "subjects" and "trained_on"."""
    ages, raw = (np.asarray(kept[key], np.float64) for key in ("age", "raw"))
    subjects = kept.get("subjects")
    folds = [(fold["subjects"], fold["trained_on"]) for fold in kept.get("folds", [])]
    how = f"least squares on held-out predictions, {kept['how']}"
    bias = fit_age_bias(ages, raw, how, subjects=subjects, folds=folds)
    return bias, regression_to_mean(ages, raw, subjects)


def check_held_out(predicted: Collection[str], trained_on: Collection[str]) -> None:
    """Raises UsageError where a network predicted subjects that it was trained on."""
    seen = sorted(set(predicted) & set(trained_on))
    if seen:
        raise UsageError(
            f"{len(seen)} of {len(set(predicted))} subjects were seen by the model that predicted their age: "
            f"{seen[0]}.",
            "Use held-out predictions only (hz-train age keeps them).",
        )


def regression_to_mean(
    ages: F64, held_out_predictions: F64, subjects: Sequence[str] | None = None
) -> RegressionToMean | None:
    """The pull to the mean before and after a correction that no subject took part in for itself.

    ages, held_out_predictions, subjects : (n,) as in `fit_age_bias`, and None where that gives None, or where
    one subject less leaves one single age or too flat a line.
    Raises ValueError where `subjects` has another length.
    """
    ages, raw = np.asarray(ages, np.float64), np.asarray(held_out_predictions, np.float64)
    corrected = np.empty_like(raw)
    whole = fit_age_bias(ages, raw, "", subjects=subjects)
    if whole is None:
        return None
    _, who, scans = np.unique(_people(subjects, ages), return_inverse=True, return_counts=True)
    for k in range(whole.n):
        own = who == k
        if np.ptp(ages[~own]) == 0:
            return None
        slope, intercept = _line(ages[~own], raw[~own])
        if slope < LEAST_SLOPE:
            return None
        corrected[own] = (raw[own] - intercept) / slope
    return RegressionToMean(
        slope_before=whole.slope,
        slope_after=_line(ages, corrected)[0],
        mae_before=float(np.average(np.abs(raw - ages), weights=1 / scans[who])),
        mae_after=float(np.average(np.abs(corrected - ages), weights=1 / scans[who])),
        n=whole.n,
    )


def _people(subjects: Sequence[str] | None, ages: F64) -> NDArray[Any]:
    """(n,) who was scanned, everybody once where `subjects` is None."""
    if subjects is None:
        return np.arange(len(ages))
    if len(subjects) != len(ages):
        raise ValueError(f"{len(ages)} ages and {len(subjects)} subjects")
    return np.asarray(subjects, str)


def _line(ages: F64, predictions: F64) -> tuple[float, float]:
    """(slope, intercept) of predictions on ages."""
    slope, intercept = np.polyfit(np.asarray(ages, np.float64), np.asarray(predictions, np.float64), 1)
    return float(slope), float(intercept)
