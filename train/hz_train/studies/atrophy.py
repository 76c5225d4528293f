"""Atrophy of a known size: the same brain twice, the second time with 3 % less tissue and fluid in its place.

The brain is drawn together about its centre, evenly, so that every tissue loses as much, and the rim
that it leaves fills with fluid: the outline of a head does not shrink. The first scan is drawn apart by as
much as the second together, so that both are interpolated alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.foreground import centroid
from hz_runtime.model_space.resample import resample

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

PLANTED = -3.0  # % of the volume


def atrophied(data: F32, affine: F64, brain: Mask, fluid: float) -> tuple[F32, F32, Mask]:
    """(the scan, the scan after the loss, the brain's outline in both).

    data : (I, J, K) float32 with air 0.  affine : (4, 4), voxel to world mm.  brain : (I, J, K).
    fluid : how bright it is.  The volume of any tissue in the second is 3 % below that in the first.
    """
    half = (1 + PLANTED / 100) ** (1 / 6)  # a third for each axis, half of it for each scan
    centre = centroid(brain, affine)
    inside = brain.astype(np.float32)
    outlines = [scaled(inside, affine, centre, factor) for factor in (1 / half, half)]
    first, second = (scaled(data, affine, centre, factor) for factor in (1 / half, half))
    rim = np.clip(outlines[0] - outlines[1], 0, 1)
    return first, np.asarray(second + rim * np.float32(fluid), np.float32), outlines[0] >= 0.5


def scaled(data: F32, affine: F64, centre: F64, factor: float) -> F32:
    """A volume drawn together (factor below 1) or apart about a point of its world, on its own grid."""
    drawn = np.diag([factor] * 3 + [1.0])
    drawn[:3, 3] = (1 - factor) * centre
    return resample(data, drawn @ affine, data.shape, affine)
