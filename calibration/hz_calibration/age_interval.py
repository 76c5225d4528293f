"""Prediction intervals of age networks: how far from the answer the true age may well be.

Split-conformal prediction (Papadopoulos et al. 2002, Vovk et al. 2005, Lei et al. 2018): the interval is the
answer plus and minus a quantile of the absolute errors on subjects that the network never saw. A new subject
who is exchangeable with those is then inside with at least the nominal probability, whatever the network.

Scans of one subject are not exchangeable with those of others, so that subjects count, not scans: the errors
of a subject with m scans weigh 1/m each (hierarchical conformal prediction, Lee, Barber & Willett 2023). With
one scan a subject that is the usual quantile of rank ceil((n + 1) * level).

What is exact and what is not: where one split was held out, the interval of raw ages is exact. Errors of a
cross-validation come from networks of fewer subjects than the one that ships; that is the jackknife's case
(Barber et al. 2021), which no finite sample proves and which holds for networks that a few subjects more or
less hardly change. Corrected ages are judged by lines that leave their own subject out, in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_calibration.age_bias import LEAST_SLOPE, check_held_out

F64 = NDArray[np.float64]
Ids = NDArray[np.int64]

LEVEL = 0.9
SPLIT = "split conformal (Papadopoulos et al. 2002, Lei et al. 2018)"
CROSS = "conformal quantile of cross-validation errors (jackknife form, Barber et al. 2021)"
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class MeasuredCoverage:
    """Share of subjects inside an interval that was made without them.

    value : mean over subjects of the share of their scans that is inside.  ci95 : its 95 % score interval
    (Wilson 1927), as of n independent subjects.  n : subjects.  how : what was left out.
    """

    value: float
    ci95: tuple[float, float]
    n: int
    how: str


@dataclass(frozen=True)
class AgeThird:
    """Coverage within one third of the subjects by age, which a marginal guarantee says nothing about.

    age_range : youngest and oldest, years.
    """

    age_range: tuple[float, float]
    coverage: float
    n: int


@dataclass(frozen=True)
class Width:
    """An interval: the answer plus and minus `half_width` years, and what it covers of subjects left out."""

    half_width: float
    coverage: MeasuredCoverage
    by_age: tuple[AgeThird, ...]


@dataclass(frozen=True)
class Calibration:
    """What a bundle stores of the intervals of its age network.

    level : nominal coverage.  n : calibration subjects, of n_scans scans.
    raw, corrected : intervals of raw and bias-corrected ages; corrected is None where there is no correction.
    half_width_of_mean_age : of the interval around the mean age of the same subjects, years: what can be said
    without looking at the scan.
    """

    level: float
    method: str
    how: str
    n: int
    n_scans: int
    raw: Width
    corrected: Width | None
    half_width_of_mean_age: float


@dataclass(frozen=True)
class HeldOut:
    """Held-out predictions: ages and raw predictions (n,) in years, the subject of each, and the block of
    each: the network that predicted it, where that is known and there are several, else the subject again."""

    ages: F64
    raw: F64
    subjects: Ids
    blocks: Ids

    def at(self, rows: NDArray[np.bool_]) -> HeldOut:
        return HeldOut(self.ages[rows], self.raw[rows], self.subjects[rows], self.blocks[rows])

    @property
    def n(self) -> int:
        return len(np.unique(self.subjects))


def calibrate(
    ages: Sequence[float],
    raw: Sequence[float],
    subjects: Sequence[str],
    how: str,
    *,
    folds: Sequence[tuple[Collection[str], Collection[str]]] = (),
    correct: bool = True,
    level: float = LEVEL,
) -> Calibration | str:
    """Intervals from held-out predictions, or in one sentence why there can be none.

    ages, raw : (n,) years; every prediction from a network that never saw that subject.
    subjects : (n,) who was scanned.  how : where the predictions come from, for the bundle.
    folds : where known, of every predicting network the subjects it predicted and those it was trained on.
    correct : whether the bundle corrects the age bias.
    Raises UsageError for a prediction of a subject that the network was trained on, ValueError where the
    arguments differ in length.
    """
    for predicted, trained_on in folds:
        check_held_out(predicted, trained_on)
    if not len(ages) == len(raw) == len(subjects):
        raise ValueError(f"{len(ages)} ages, {len(raw)} predictions and {len(subjects)} subjects")
    who = np.unique(np.asarray(subjects, str), return_inverse=True)[1].astype(np.int64)
    held = HeldOut(np.asarray(ages, np.float64), np.asarray(raw, np.float64), who, who)
    if not np.isfinite([held.ages, held.raw]).all():
        return "Some held-out predictions are not numbers."
    if held.n < least_subjects(level):
        return (
            f"{held.n} held-out subjects are too few for a {level:.0%} interval: with fewer than "
            f"{least_subjects(level)} it would hang on the largest error alone, or not exist."
        )
    held, left_out = _with_blocks(held, subjects, folds, level)
    found = _width(held, _raw_answers, left_out, level)
    mean = _half_width(held, _mean_answers, level)
    corrected = _width(held, _corrected_answers, left_out, level) if correct else None
    if found is None or mean is None:
        return "The errors of the held-out predictions give no finite interval."
    method = SPLIT if len(folds) == 1 else CROSS
    return Calibration(level, method, how, held.n, len(held.ages), found, corrected, mean)


def from_held_out(
    kept: Mapping[str, Any], n_subjects: int | None, *, correct: bool, level: float = LEVEL
) -> Calibration | str:
    """`calibrate` of what a checkpoint keeps: "age", "raw", "how" and, where training has written them,
    "subjects" and "folds".

    n_subjects : how many subjects the checkpoint's scores count. Checkpoints of before "subjects" say by it
    whether every prediction is of another subject.
    """
    subjects = kept.get("subjects")
    if subjects is None:
        if n_subjects != len(kept["age"]):
            return (
                "The checkpoint does not say which of its held-out predictions are of one subject. "
                "Train it again with this version."
            )
        subjects = [str(k) for k in range(len(kept["age"]))]
    folds = [(fold["subjects"], fold["trained_on"]) for fold in kept.get("folds", [])]
    return calibrate(
        kept["age"], kept["raw"], subjects, str(kept["how"]), folds=folds, correct=correct, level=level
    )


def least_subjects(level: float) -> int:
    """The fewest subjects with which an interval of this level does not hang on the largest error alone:
    the smallest n with ceil((n + 1) * level) < n. At 90 %, 19."""
    n = 1
    while math.ceil((n + 1) * level - 1e-9) >= n:
        n += 1
    return n


def conformal_quantile(scores: F64, subjects: Ids, level: float) -> float:
    """The score that a new subject's exceeds with a probability of at most 1 - level.

    scores, subjects : (n,). Of K subjects, each of the m scans of one weighs 1 / (m * (K + 1)), and the
    weight that is left, 1 / (K + 1), lies at infinity for the new one (Lee, Barber & Willett 2023).
    Infinity where K is too small for the level.
    """
    _, inverse, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum((1 / counts[inverse])[order]) / (len(counts) + 1)
    place = int(np.searchsorted(reached, level - 1e-9))
    return float(scores[order][place]) if place < len(scores) else math.inf


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson 1927); also for shares that are means of fractions."""
    z2 = _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, round(centre - half, 9)), min(1.0, round(centre + half, 9))


def _with_blocks(
    held: HeldOut,
    subjects: Sequence[str],
    folds: Sequence[tuple[Collection[str], Collection[str]]],
    level: float,
) -> tuple[HeldOut, str]:
    """Blocks to leave out for measuring coverage: folds where they are known and leave enough, else subjects.

    Leaving out one subject of a sample gives raw ages their nominal coverage by arithmetic; leaving out all
    that one network predicted can find that networks differ.
    """
    alone = "every subject by the interval of all the others (for raw ages the nominal one by arithmetic)"
    fold_of = {subject: k for k, (predicted, _) in enumerate(folds) for subject in predicted}
    if len(folds) < 2 or not set(subjects) <= set(fold_of):
        return held, alone
    by_fold = HeldOut(
        held.ages, held.raw, held.subjects, np.array([fold_of[subject] for subject in subjects], np.int64)
    )
    rest = [by_fold.at(by_fold.blocks != block).n for block in np.unique(by_fold.blocks)]
    if min(rest) < least_subjects(level):
        return held, alone
    return by_fold, f"the subjects of each of {len(folds)} folds by the interval of the others"


# (fitted on, applied to) -> answers (n,); without the latter, those of the scans fitted on, each subject's
# own left out.
Answers = Callable[[HeldOut, HeldOut | None], F64 | None]


def _half_width(held: HeldOut, answers: Answers, level: float) -> float | None:
    """Of the interval of a kind of answer, years; None where there is none."""
    own = answers(held, None)
    if own is None:
        return None
    found = conformal_quantile(np.abs(own - held.ages), held.subjects, level)
    return found if math.isfinite(found) else None


def _width(held: HeldOut, answers: Answers, left_out: str, level: float) -> Width | None:
    """The interval of a kind of answer; None where there is none, on all subjects or on some."""
    half_width = _half_width(held, answers, level)
    inside = np.empty(len(held.ages))
    for block in np.unique(held.blocks):
        apart = held.blocks == block
        rest, tested = held.at(~apart), held.at(apart)
        reach, of_tested = _half_width(rest, answers, level), answers(rest, tested)
        if half_width is None or reach is None or of_tested is None:
            return None
        inside[apart] = np.abs(of_tested - tested.ages) <= reach
    if half_width is None:
        return None
    counts = np.bincount(held.subjects)
    shares = np.bincount(held.subjects, inside) / counts
    value = float(shares.mean())
    return Width(
        half_width,
        MeasuredCoverage(value, wilson(value, held.n), held.n, left_out),
        _thirds(shares, np.bincount(held.subjects, held.ages) / counts),
    )


def _thirds(shares: F64, ages: F64) -> tuple[AgeThird, ...]:
    """shares, ages : (subjects,)."""
    parts = [part for part in np.array_split(np.argsort(ages, kind="stable"), 3) if len(part)]
    return tuple(
        AgeThird(
            (round(float(ages[part].min()), 1), round(float(ages[part].max()), 1)),
            float(shares[part].mean()),
            len(part),
        )
        for part in parts
    )


def _raw_answers(fitted: HeldOut, applied: HeldOut | None) -> F64 | None:
    return (applied or fitted).raw


def _mean_answers(fitted: HeldOut, applied: HeldOut | None) -> F64 | None:
    """The mean age of the scans, each subject's own left out."""
    if applied is not None:
        return np.full(len(applied.ages), fitted.ages.mean())
    counts = np.bincount(fitted.subjects)
    others = len(fitted.ages) - counts
    known: F64 = ((fitted.ages.sum() - np.bincount(fitted.subjects, fitted.ages)) / np.maximum(others, 1))[
        fitted.subjects
    ]
    return known


def _corrected_answers(fitted: HeldOut, applied: HeldOut | None) -> F64 | None:
    """Ages corrected by the line through `fitted`; its own by lines that leave each subject out. None where a
    line is too flat to correct by."""
    x, y = fitted.ages, fitted.raw
    parts = np.stack([np.ones_like(x), x, y, x * x, x * y])  # (5, n)
    sums = parts.sum(1, keepdims=True)  # (5, 1)
    if applied is None:
        each = np.stack([np.bincount(fitted.subjects, part) for part in parts])  # (5, subjects)
        sums = (sums - each)[:, fitted.subjects]  # (5, n)
    n, sx, sy, sxx, sxy = sums
    spread = n * sxx - sx * sx
    if (spread <= 1e-9 * n * sxx).any():
        return None
    slope = (n * sxy - sx * sy) / spread
    if (slope < LEAST_SLOPE).any():
        return None
    corrected: F64 = ((applied or fitted).raw - (sy - slope * sx) / n) / slope
    return corrected
