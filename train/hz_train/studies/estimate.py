"""Statistics of a cohort, overall and by site: functions of weights, one a scan, as `scores.estimates` takes.

They answer with several numbers at once, the whole cohort's first and then each site's, so that one set of
resamples serves a whole table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hz_train import scores
from hz_train.scores import RESAMPLES, Statistic
from hz_train.studies.result import Metric

F64 = NDArray[np.float64]
STREAM = (0, 11)  # of random numbers: that of the audits and appearances published so far


def estimates(statistic: Statistic, subjects: Sequence[str], resamples: int = RESAMPLES) -> list[Metric]:
    """`scores.estimates` of (n,) subjects as metrics of a table."""
    return [Metric(*found) for found in scores.estimates(statistic, subjects, None, resamples, STREAM)]


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
