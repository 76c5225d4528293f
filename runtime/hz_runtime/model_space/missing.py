"""Voxels that hold no number, NaN or infinite: how much of the brain they take.

Outside the brain they are air, whatever their number: SPM writes NaN there, and so do tools that reslice. In
the brain they are a hole, which no result may pass over in silence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import NoBrain
from hz_runtime.model_space.foreground import volume_cm3
from hz_runtime.model_space.morphology import dilated, eroded, filled, reached
from hz_runtime.model_space.resample import bounding_box

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

MOST_MISSING = 0.01  # of the brain
GAP_MM = 10.0  # half as wide as the gap that a hole may leave in the brain's outline


def missing_flags(missing: Mask | None, brain: Mask, affine: F64) -> tuple[str, ...]:
    """A flag where voxels of the brain hold no number; nothing where none do.

    missing : of a `Volume`, (I, J, K) bool.  brain : (I, J, K) bool without holes, of the same voxels, with
        `affine` (4, 4), voxel to world mm.
    Raises NoBrain where they are more than a hundredth of the brain.
    """
    inside = None if missing is None else missing & brain
    if inside is None or not inside.any():
        return ()
    count, share = int(inside.sum()), float(inside.sum() / brain.sum())
    cm3 = volume_cm3(inside, affine)
    if share > MOST_MISSING:
        raise NoBrain(
            f"{cm3:.3g} cm3 of the brain, {share:.1%}, hold no number (NaN or infinite); at most "
            f"{MOST_MISSING:.0%} is accepted.",
            "The scan was damaged by an earlier step: run that step again.",
        )
    voxels = f"{count} voxel{'' if count == 1 else 's'} of the brain ({cm3:.2g} cm3, {share:.2g} of it)"
    return (f"{voxels} hold no number (NaN or infinite) and count as air: look at the scan there",)


def around_holes(tissue: Mask, missing: Mask, affine: F64) -> Mask:
    """The brain of a stripped scan with the holes that missing voxels leave in it, (I, J, K) bool.

    tissue : (I, J, K) bool, what is brighter than air.  missing : of a `Volume`.  affine : (4, 4), voxel to
        world mm.
    A hole within the tissue is one. So is one at its edge, unless its voxels lead away from the brain: those
    are air.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    steps = max(1, round(GAP_MM / float(spacing.mean())))
    box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in bounding_box(tissue))
    inside, holes = np.pad(tissue[box], steps), np.pad(missing[box], steps, "edge")
    rim = np.zeros_like(holes)
    for axis in range(3):
        for end in (0, -1):
            rim[(slice(None),) * axis + (end,)] = True
    closed = eroded(dilated(inside, steps), steps)
    inside = filled(inside) | (closed & holes & ~reached(rim, holes))
    whole = np.zeros_like(tissue)
    whole[box] = inside[(slice(steps, -steps),) * 3]
    return whole
