"""Which voxels are brain: found already stripped, given, or propagated from the template.

The template's mask needs no network's weights. Through the affine registration it lies within a few
millimetres of the brain's edge; between its core and its surroundings the scan's own intensities decide:
tissue that is joined to the core by more than a thin bridge is brain (the idea of BET and of FreeSurfer's
watershed, without their surfaces).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.foreground import (
    LARGEST_BRAIN_CM3,
    LEAST_STRIPPED_AIR,
    foreground_threshold,
    volume_cm3,
)
from hz_runtime.model_space.morphology import dilated, eroded, filled, reached
from hz_runtime.model_space.resample import more_than_half, resample
from hz_runtime.preparation.template import Template

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

DOUBT = 5  # voxels of the template's 2 mm by which the brain may end inside the propagated mask
BRIDGE = 1  # half the width of what is cut between brain and skull
# Of the median of the core: darker is fluid, skull or air; brighter is fat, or a vessel.
DARK, BRIGHT = 0.35, 1.55


def stripped(data: F32, affine: F64) -> Mask | None:
    """The brain of a scan that is skull-stripped already, (I, J, K) bool; None for a whole head.

    data : (I, J, K) float32 whose lowest value is air, with `affine` (4, 4), voxel to world mm.
    Stripped means: air has exactly one value, and what has another is no larger than a brain. A defaced head
    has constant air as well, and three times a brain's volume.
    """
    inside: Mask = data > data.min()
    if volume_cm3(inside, affine) > LARGEST_BRAIN_CM3 or inside.mean() > 1 - LEAST_STRIPPED_AIR:
        return None
    tissue = data > foreground_threshold(data)
    # A window around the brain, or scalp kept with a blanked background, is larger than its tissue.
    return filled(tissue) & inside


def propagated_mask(data: F32, affine: F64, pose: F64, template: Template, seen: F32 | None = None) -> Mask:
    """The template's mask through an affine pose onto a scan, refined by its intensities: (I, J, K) bool.

    data : (I, J, K) float32, whole head, with `affine` (4, 4), voxel to world mm.
    pose : (4, 4), scan's world to the template's.  seen : the scan through it, as
        `registration.registered` returns both.
    """
    if seen is None:
        seen = resample(data, pose @ affine, template.mask.shape, template.affine, template.around)
    soft = _smoothed(refined(seen, template).astype(np.float32))
    return more_than_half(soft, np.linalg.inv(pose) @ template.affine, data.shape, affine)


def refined(seen: F32, template: Template) -> Mask:
    """The brain of a head that lies in template space, from the template's mask; all (91, 109, 91)."""
    core = eroded(template.mask, DOUBT)
    level = float(np.median(seen[core]))
    tissue = (seen > DARK * level) & (seen < BRIGHT * level) & template.around
    solid = reached(core, eroded(tissue | core, BRIDGE) | core)
    brain = dilated(solid, BRIDGE + 1) & (tissue | core)
    # Sulci and the fluid around the brain belong to it as far as the brain's outline does.
    closed = eroded(dilated(brain, 3), 3)
    return filled(closed)


def _smoothed(mask: F32) -> F32:
    """Mean of each voxel with its neighbours along the axes, [1 2 1] / 4: no staircase at a finer grid."""
    out = mask
    for axis in range(mask.ndim):
        padded = np.pad(out, [(1, 1) if k == axis else (0, 0) for k in range(mask.ndim)])
        low, middle, high = (
            padded.take(range(start, start + mask.shape[axis]), axis=axis) for start in (0, 1, 2)
        )
        out = np.asarray((low + 2 * middle + high) / 4, np.float32)
    return out
