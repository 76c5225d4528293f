"""Statistics of a cohort, overall and by site, with intervals: bootstrap over subjects, never over scans.

Rescans of one person are not independent; they are drawn together. A statistic is therefore written as a
function of weights, one a scan: how often its subject was drawn. It answers with several numbers at once,
the whole cohort's first and then each site's, so that one set of resamples serves a whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hz_train.scores import RESAMPLES
from hz_train.studies.record import Metric

F64 = NDArray[np.float64]
Statistic = Callable[[F64], F64]


def estimates(
    statistic: Statistic, subjects: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> list[Metric]:
    """What the statistic says of the cohort as it is, each number with its 95 % percentile interval.

    statistic : from weights (n,) float64, one a scan, to (m,) numbers; nan where a resample holds too
        little, and such resamples are left out.
    subjects : (n,) who was scanned. With a single subject there is no interval.
    """
    names, code = np.unique(np.asarray(subjects, str), return_inverse=True)
    rng = np.random.default_rng([seed, 11])

    def resample() -> F64:
        times = np.bincount(rng.integers(0, names.size, names.size), minlength=names.size)
        return statistic(times[code].astype(np.float64))

    drawn = [resample() for _ in range(resamples if names.size > 1 else 0)]
    found = []
    for k, value in enumerate(statistic(np.ones(code.size))):
        values = np.array([d[k] for d in drawn])
        values = values[np.isfinite(values)]
        ends = np.percentile(values, [2.5, 97.5]) if values.size else None
        interval = None if ends is None else (float(ends[0]), float(ends[1]))
        found.append(Metric(float(value), interval) if np.isfinite(value) else Metric(None))
    return found


def by_site(above: F64, sites: Sequence[str], names: Sequence[str], below: F64 | None = None) -> Statistic:
    """Weighted means of one value a scan over all sites named, then over each of them.

    above : (n,) one value a scan; nan is left out.  below : (n,) for a ratio of means in place of a mean,
        which unlike a mean of ratios does not hang on the scan with the smallest denominator.
    """
    members = np.stack([[s == name for s in sites] for name in names]).astype(np.float64)
    members = np.concatenate([members.max(axis=0, keepdims=True), members])
    counted: F64 = np.ones(above.shape) if below is None else below
    known = np.isfinite(above) & np.isfinite(counted)
    upper, lower = (members * np.where(known, v, 0.0) for v in (above, counted))

    def statistic(weights: F64) -> F64:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((upper @ weights) / (lower @ weights))

    return statistic


def balanced(correct: F64, sites: Sequence[str], names: Sequence[str]) -> Statistic:
    """Balanced accuracy, then the recall of each site: (1 + sites,).

    correct : (n,) share of attempts in which a scan's site was named rightly. Balanced accuracy is the mean
    of the recalls (Brodersen et al. 2010): an answer that does not depend on the scan gets 1 / sites,
    however unequal the sites are. Sites that a resample lacks are left out of its mean.
    """
    recall = by_site(correct, sites, names)

    def statistic(weights: F64) -> F64:
        each = recall(weights)[1:]
        known = each[np.isfinite(each)]
        return np.concatenate([[known.mean() if known.size else np.nan], each])

    return statistic
