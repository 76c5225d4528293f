"""The level of a brain's white matter, and volumes brought to one: the scale that harmonized scans share.

The mean or the median of a brain follows how much of it is fluid, that is who was scanned and how the scan
was stripped; the level of white matter follows neither (as in WhiteStripe, Shinohara et al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import NoBrain
from hz_runtime.model_space.recipe import Recipe

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BINS = 256
LEAST = 0.05  # of the range of model space; what is darker is air


def otsu_thresholds(values: F32, bins: int = BINS) -> tuple[float, float]:
    """The two thresholds that divide values into three classes of largest between-class variance.

    Otsu 1979 for three classes (his eq. 22), searched exhaustively over a histogram of `bins` bins between
    the 0.1 and the 99.9 percentile, so that a hot voxel does not coarsen it. Equal to the best 3-means of
    the binned values, with no start to depend on, and moves with a change of gain or offset.
    Raises NoBrain where the values do not vary.
    """
    low, high = (float(v) for v in np.percentile(values, [0.1, 99.9]))
    if not high > low:
        raise NoBrain("a brain without contrast cannot be divided into tissues.", "Look at the scan.")
    counts, edges = np.histogram(np.clip(values, low, high), bins, (low, high))
    share = np.concatenate([[0.0], np.cumsum(counts)]) / values.size
    moment = np.concatenate([[0.0], np.cumsum(counts * (edges[1:] + edges[:-1]) / 2)]) / values.size

    def part(first: NDArray[np.intp], last: NDArray[np.intp]) -> F64:
        weight, sums = share[last] - share[first], moment[last] - moment[first]
        return np.where(weight > 0, sums * sums / np.maximum(weight, 1e-300), 0.0)

    i, j = np.triu_indices(bins + 1, 1)
    inner = (i > 0) & (j < bins)
    i, j = i[inner], j[inner]
    variance = part(np.zeros_like(i), i) + part(i, j) + part(j, np.full_like(j, bins))
    # Between separated classes every threshold is as good as the next: the middle one is taken.
    best = np.flatnonzero(variance >= variance.max() * (1 - 1e-12))
    return float(edges[i[best]].mean()), float(edges[j[best]].mean())


def white_level(volume: F32) -> float:
    """Median intensity of the brightest of three classes (`otsu_thresholds`) of a volume in model space.

    volume : (D, H, W) in [0, 1].

    Raises NoBrain where nothing is brain, or its intensities do not vary.
    """
    inside = volume[volume > LEAST]
    if not inside.size:
        raise NoBrain("the harmonized scan is empty.", "Look at the scan: is it a skull-stripped T1w head?")
    return float(np.median(inside[inside > otsu_thresholds(inside)[1]]))


def at_level(volumes: F32, level: float, measure: Callable[[F32], float] = white_level) -> F32:
    """(n, D, H, W) volumes scaled to one level of the brain, by that measure, and clipped to [0, 1]."""
    return np.stack([np.clip(v * (level / max(measure(v), 1e-3)), 0, 1) for v in volumes]).astype(np.float32)


def anchored(harmonized: F32, recipe: Recipe) -> F32:
    """(n, D, H, W) harmonized volumes in [0, 1] at the recipe's white_level; as they are where it has none.

    Raises NoBrain as `white_level`.
    """
    return at_level(harmonized, recipe.white_level) if recipe.white_level else harmonized
