"""Intensity rules: min-max as in Komandur 2023, percentiles of the brain, its median, or levels.

Min-max hangs on the brightest voxel, a vessel in most scans: harmonized white matter follows it from scan to
scan. The median of the brain does not move with a vessel, nor with how fluid or fat was stripped.

Rules are for every network; levels are what the makers of published networks divide by, and what they then
subtract or multiply by is arithmetic inside the network's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import NoBrain
from hz_runtime.model_space.foreground import foreground_threshold

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

PERCENTILES = (0.5, 99.5)  # of the foreground
MEDIANS = 2.0  # of the brain's median become 1: white matter of T1w scans lies at 1.1 to 1.4


def min_max(data: F32) -> tuple[F32, float, float]:
    """Scale a volume linearly so that its minimum is 0 and its maximum 1 (Komandur 2023, Methods).

    data : (D, H, W) float32, any unit. Returns (scaled float32, minimum, maximum).
    Raises NoBrain where the volume is constant.
    """
    low, high = float(data.min()), float(data.max())
    if not high > low:
        raise NoBrain(
            f"every voxel is {low:g}: there is no brain in this scan.",
            "Check the file in a viewer; an empty export or a failed mask looks like this.",
        )
    return ((data - np.float32(low)) / np.float32(high - low)).astype(np.float32), low, high


def percentile(data: F32) -> tuple[F32, float, float]:
    """Scale a volume linearly so that the foreground's 0.5 and 99.5 percentiles are 0 and 1; the rest clips.

    Bashyam 2020 leave their intensity rule open; this one does not hang on a volume's single brightest voxel.
    data : (D, H, W) float32, any unit. Returns (scaled float32, intensity at 0, intensity at 1).
    Raises NoBrain where the volume, or all of its foreground, is constant.
    """
    inside = data[data > foreground_threshold(data)]
    low, high = (float(level) for level in np.percentile(inside, PERCENTILES))
    if not high > low:
        raise NoBrain(
            f"every voxel of the foreground is {low:g}: this is a mask, not a scan.",
            "Give the T1-weighted volume itself.",
        )
    scaled = (data - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1).astype(np.float32), low, high


def median(data: F32) -> tuple[F32, float, float]:
    """Scale a volume linearly so that air is 0 and twice the foreground's median 1; the rest clips.

    Nothing that fills less than half a brain moves it. For scans without a receive field (N4).
    data : (D, H, W) float32, any unit, whose minimum is air. Returns (scaled float32, air, intensity at 1).
    Raises NoBrain where the volume is constant.
    """
    low = float(data.min())
    high = low + MEDIANS * (float(np.median(data[data > foreground_threshold(data)])) - low)
    return np.clip((data - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32), low, high


def scaled_by_level(
    data: F32, inside: Mask, level: str, top: float, percent: float
) -> tuple[F32, float, float]:
    """Scale a volume linearly so that air is 0 and `top` times its level 1; the rest clips.

    data : (D, H, W) float32, any unit, whose minimum is air.  inside : of the same shape, the brain.
    level : a key of LEVELS.  top : 0 for MEDIANS.  percent : of the percentile, where the level is one.
    Returns (scaled float32, air, intensity at 1). Raises NoBrain where the level is that of air.
    """
    low = float(data.min())
    above = data - np.float32(low)
    high = (top or MEDIANS) * LEVELS[level](above, inside, percent)
    if not high > 0:
        raise NoBrain(
            f"the {level} level of this scan is {high:g}: there is no brain in it.",
            "Check the file in a viewer; an empty export or a failed mask looks like this.",
        )
    above /= np.float32(high)
    return np.clip(above, 0, 1, out=above), low, low + high


def _brain_median(above: F32, inside: Mask, _: float) -> float:
    return float(np.median(above[inside])) if inside.any() else 0.0


def _field_mean(above: F32, _: Mask, __: float) -> float:
    return float(above.mean(dtype=np.float64))


def _field_percentile(above: F32, _: Mask, percent: float) -> float:
    return float(np.percentile(above, percent))


# A level -> its value in (D, H, W) float32 above air, given the brain in it and a percentage.
LEVELS: Mapping[str, Callable[[F32, Mask, float], float]] = MappingProxyType(
    {"brain-median": _brain_median, "field-mean": _field_mean, "field-percentile": _field_percentile}
)
# What 0 and 1 are, in words for a reader of what was written.
ANCHORS: Mapping[str, str] = MappingProxyType(
    {
        "min-max": "0 is the darkest and 1 the brightest voxel of the scan on the network's grid",
        "percentile": "0 and 1 are the 0.5 and 99.5 percentiles of the brain",
        "median": "0 is air and 1 twice the median of the brain",
        "brain-median": "0 is air and 1 intensity_top times the median of the brain with its fluid",
        "field-mean": "0 is air and 1 intensity_top times the mean of the template's field, air counted",
        "field-percentile": "0 is air and 1 intensity_top times the intensity_percent percentile of the "
        "template's field, air counted",
    }
)
# The recipe's `intensity` -> (D, H, W) float32 to (the same in [0, 1], intensity at 0, intensity at 1).
RULES: Mapping[str, Callable[[F32], tuple[F32, float, float]]] = MappingProxyType(
    {"min-max": min_max, "percentile": percentile, "median": median}
)
