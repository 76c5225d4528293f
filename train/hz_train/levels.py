"""By which number a brain is bright or dark in training, and what becomes of grey against white matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.levels import LEAST, otsu_thresholds, white_level

F32 = NDArray[np.float32]


def mean_level(volume: F32) -> float:
    """Mean intensity inside the brain of a volume in model space, (D, H, W) in [0, 1].

    Min-max leaves a scan's overall brightness to its single brightest voxel, often a vessel. No network
    can foresee it, so restoration is asked for the target site's average brightness instead.
    """
    return float(volume[volume > LEAST].mean())


LEVELS: Mapping[str, Callable[[F32], float]] = MappingProxyType({"mean": mean_level, "white": white_level})


def grey_white(volume: F32, classes_of: F32) -> float:
    """Median intensity of grey over that of white matter of a volume, (D, H, W) in [0, 1].

    classes_of : the volume that tells which voxels are which (`otsu_thresholds`): the same, or the scan that
        it was made from, so that a change of intensity moves no voxel from one tissue to the other.
    """
    brain = classes_of > LEAST
    low, high = otsu_thresholds(classes_of[brain])
    grey, white = brain & (classes_of > low) & (classes_of <= high), classes_of > high
    return float(np.median(volume[grey]) / max(float(np.median(volume[white])), 1e-6))
