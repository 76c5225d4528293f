"""How much one number varies among scans, between sites and within them, and how far rescans agree on it.

Statistics of weights, one a scan or one a person, as `scores.estimates` takes them: how often each was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hz_train.scores import Statistic

F64 = NDArray[np.float64]


def coefficients_of_variation(values: F64, sites: Sequence[str], weights: F64) -> F64:
    """(3,) standard deviations in % of the mean: of all scans, between sites, and within sites.

    values, weights : (n,).  sites : of each scan.
    Between and within are the components of a one-way random model by its analysis of variance, for groups of
    unequal size (Searle, Casella & McCulloch 1992, section 3.6); a negative component is 0. nan for what
    these scans cannot say: between of one site, within where every site is one scan.
    """
    _, code = np.unique(np.asarray(sites), return_inverse=True)
    counts = np.bincount(code, weights)
    drawn = counts > 0
    n, k = float(counts.sum()), int(drawn.sum())
    mean = float(weights @ values) / n
    centred = values - mean
    with np.errstate(invalid="ignore", divide="ignore"):
        of_site = np.bincount(code, weights * centred) / counts
        squares = float(weights @ np.square(centred - np.where(drawn, of_site, 0)[code]))
        within = squares / (n - k) if n > k else np.nan
        size = (n - float(np.square(counts).sum()) / n) / (k - 1) if k > 1 else np.nan
        mean_square = float((counts * np.square(of_site))[drawn].sum()) / (k - 1) if k > 1 else np.nan
        total = float(weights @ np.square(centred)) / (n - 1) if n > 1 else np.nan
    between = (mean_square - within) / size
    if np.isfinite(between):
        between = max(between, 0.0)
    return np.asarray(100 * np.sqrt([total, between, within]) / abs(mean))


def variation(values: F64, sites: Sequence[str]) -> Statistic:
    """`coefficients_of_variation` as a statistic; scans without the number (nan) do not count."""
    known = np.isfinite(values)
    kept = [site for site, there in zip(sites, known, strict=True) if there]

    def statistic(weights: F64) -> F64:
        if weights[known].sum() < 2:
            return np.full(3, np.nan)
        return coefficients_of_variation(values[known], kept, weights[known])

    return statistic


def intraclass_correlation(ratings: F64, weights: F64 | None = None) -> float:
    """ICC(2,1) of Shrout & Fleiss 1979: absolute agreement of single measurements, two-way random effects.

    ratings : (n, k), k measurements of n people.  weights : (n,) how often each person counts.
    1 where all measurements of a person agree; nan for fewer than two people, or where nothing varies.
    """
    n_rows, k = ratings.shape
    w = np.ones(n_rows) if weights is None else weights
    n = float(w.sum())
    if n < 2 or np.count_nonzero(w) < 2:
        return float("nan")
    rows, columns = ratings.mean(axis=1), w @ ratings / n
    grand = float(w @ rows) / n
    between = k * float(w @ np.square(rows - grand)) / (n - 1)
    judges = n * float(np.square(columns - grand).sum()) / (k - 1)
    rest = ratings - rows[:, None] - columns + grand
    error = float(w @ np.square(rest).sum(axis=1)) / ((n - 1) * (k - 1))
    whole = between + (k - 1) * error + k * (judges - error) / n
    return (between - error) / whole if whole > 0 else float("nan")


def site_distance(shares: F64, step: float, sites: Sequence[str]) -> Statistic:
    """Mean earth mover's distance between the histograms of every two sites.

    shares : (n, levels) of each scan, the share of its brain at or below each level.  step : between levels.
    A site's histogram is the mean of its scans', so that large heads do not count more; in one dimension the
    distance is the area between two cumulative histograms (Vallender 1974).
    """
    names = sorted(set(sites))
    members = np.stack([[s == name for s in sites] for name in names]).astype(np.float64)
    pairs = np.triu_indices(len(names), 1)

    def statistic(weights: F64) -> F64:
        drawn = members * weights
        with np.errstate(invalid="ignore"):
            mean = drawn @ shares / drawn.sum(axis=1, keepdims=True)
        gaps = np.abs(mean[pairs[0]] - mean[pairs[1]]).sum(axis=1) * step
        known = gaps[np.isfinite(gaps)]
        return np.array([known.mean() if known.size else np.nan])

    return statistic
