"""Binary morphology of (I, J, K) masks in numpy: what a brain mask needs of scipy.ndimage.

Neighbours are the six that share a face; nothing lies outside the array.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def dilated(mask: Mask, steps: int = 1, within: Mask | None = None) -> Mask:
    """Every voxel within `steps` face-to-face steps of the mask; with `within`, along voxels of that only."""
    for _ in range(steps):
        grown = mask.copy()
        for axis in range(mask.ndim):
            near, far = _neighbours(axis, mask.ndim)
            grown[near] |= mask[far]
            grown[far] |= mask[near]
        mask = grown if within is None else grown & within
    return mask


def eroded(mask: Mask, steps: int = 1) -> Mask:
    """Every voxel further than `steps` from all that is outside; the array's edge is no outside."""
    return ~dilated(~mask, steps)


def reached(seed: Mask, within: Mask) -> Mask:
    """The part of `within` that is connected with the seed."""
    mask, count = seed & within, -1
    while count != (count := int(np.count_nonzero(mask))):
        mask = dilated(mask, 4, within)
    return mask


def filled(mask: Mask) -> Mask:
    """The mask and every hole in it that no path leads out of."""
    rim = np.zeros_like(mask)
    for axis in range(mask.ndim):
        for end in (0, -1):
            rim[(slice(None),) * axis + (end,)] = True
    return ~reached(rim, ~mask)


def _neighbours(axis: int, ndim: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    before = (slice(None),) * axis
    after = (slice(None),) * (ndim - axis - 1)
    return (*before, slice(None, -1), *after), (*before, slice(1, None), *after)
