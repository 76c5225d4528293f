"""The field of view: how far the data of a scan reach inside its array.

Tools that resample, conform or crop fill the rest of a box with one value. That is no view: a brain that ends
there in a flat face was cut off. Where the head's own surface ends, the air beyond was seen, whatever value
it has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.foreground import FOREGROUND_SHARE, foreground_threshold

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
View = tuple[slice, slice, slice]

BLANK = 0.02  # of the bright end: less than noise, more than what ringing leaves
# Tissue in the last plane that holds any. A head that ends by itself begins with 20 cm2 at most in a slice of
# 3 mm; a cut that takes a twentieth of a brain leaves a face of 70.
CUT_CM2 = 40.0


def view_of(data: F32, affine: F64) -> View:
    """The part of an (I, J, K) float32 array that was seen, its lowest value being air.

    affine : (4, 4), voxel to world mm. All of the array, unless blank planes at a face of it follow a cut.
    """
    low = float(data.min())
    if not data.max() > low:
        return slice(0, data.shape[0]), slice(0, data.shape[1]), slice(0, data.shape[2])
    threshold = foreground_threshold(data)
    blank = BLANK / FOREGROUND_SHARE * (threshold - low)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    view = []
    for axis, size in enumerate(data.shape):
        others = tuple(k for k in range(3) if k != axis)
        plane_cm2 = float(np.prod([spacing[k] for k in others])) / 100
        planes = np.moveaxis(data, axis, 0)
        ends = [0, size]
        for n, inwards in enumerate((range(size), reversed(range(size)))):
            first = next((at for at in inwards if np.ptp(planes[at]) > blank), None)
            if first is not None and np.count_nonzero(planes[first] > threshold) * plane_cm2 > CUT_CM2:
                ends[n] = first + n
        view.append(slice(*ends))
    x, y, z = view
    return x, y, z
