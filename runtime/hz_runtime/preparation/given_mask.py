"""A brain mask that a user gives: read, held to its scan's voxels, and decided where it is soft.

A probability of brain, or a mask that was resampled linearly, lies between two levels; half of the way up is
where the brain ends. What has no such two levels (labels, a distance, the scan itself) is no mask.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import GridMismatch, HzError, ScanError, UsageError
from hz_runtime.io.annex import require_fetched
from hz_runtime.io.volume import Volume, read_volume

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

MOST_APART = 0.5  # voxels, at a corner, between a given mask and its scan
EDGE = 0.05  # of the highest value: this near to either level a voxel is out, or in
# Of what is not out, the share that is in. A mask smoothed by 2 mm: 0.45 or more; a scan, a distance: 0.05.
LEAST_IN = 0.25
ROUNDING = 1e-3  # of the highest value: a lowest one below this is no rounding
SCALES = (100, 255)  # that whole numbers tell a probability in; others are labels
REMEDY = "Give a mask that is 1 in the brain and 0 elsewhere, on the scan's own grid."


def given_mask(volume: Volume, file: Path) -> Mask:
    """The mask in a file, (I, J, K) bool in the order of `volume.data`.

    Raises GridMismatch where its voxels lie elsewhere, UsageError where it is no mask, HzError where it
    cannot be read.
    """
    require_fetched(file)
    try:
        mask = read_volume(file)
    except ScanError as error:  # which the scan is not to blame for
        raise HzError(f"the brain mask {error.message}", error.remedy) from error
    if mask.shape == volume.shape:  # `prepare_head` refuses another one
        corners = np.array([[*at, 1] for at in np.ndindex(2, 2, 2)]) * [*np.subtract(volume.shape, 1), 1]
        apart = float(np.linalg.norm(corners @ (mask.affine - volume.affine).T, axis=1).max())
        if apart > MOST_APART * float(volume.spacing.min()):
            raise GridMismatch(
                f"the brain mask lies {apart:.3g} mm from the scan's own voxels.",
                "Give a mask on the scan's own grid.",
            )
    return decided(mask.data, file.name)


def decided(values: F32, name: str) -> Mask:
    """True above half of the maximum of a mask, (I, J, K) float32; raises UsageError where it is none."""
    lowest, highest = float(values.min()), float(values.max())
    if lowest < -ROUNDING * highest:
        raise UsageError(
            f"the brain mask {name} goes down to {lowest:.3g}: a distance map, or resampled by splines.",
            REMEDY,
        )
    out, inside = values <= EDGE * highest, values >= (1 - EDGE) * highest
    between = ~(out | inside)
    if between.any():
        # Zero is out of every mask, and a mask's own values are few: looking at what lies between will do.
        share = float(inside.sum() / (inside.sum() + between.sum()))
        whole = bool((values[between] == np.rint(values[between])).all())
        if share < LEAST_IN or (whole and highest not in SCALES):
            kinds = len(np.unique(values))
            raise UsageError(
                f"the brain mask {name} holds {kinds} values from {lowest:.3g} to {highest:.3g}, {share:.0%} "
                "of its inside at the highest: labels, or a scan, and no mask.",
                REMEDY,
            )
    elif not out.any():
        raise UsageError(f"the brain mask {name} is {highest:.3g} everywhere: no mask.", REMEDY)
    return np.asarray(values > 0.5 * highest)
