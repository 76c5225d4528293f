"""Whether the fine pattern of a brain lies on the template's: folds and deep grey matter, nothing coarse.

The plain correlation of intensities falls with the size of the ventricles, so that an old brain can have
less of it than a sphere of one material has. Away from the ventricles, and with the mean of the
neighbourhood taken off, neither a large ventricle nor an outline nor a receive field counts; what is left is
anatomy, which no other object has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.morphology import dilated, eroded
from hz_runtime.model_space.resample import bounding_box
from hz_runtime.preparation.template import Template, points

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEAST_FOLDS = 0.18  # real and made-up old heads 0.25 to 0.40; objects, noise and lost heads up to 0.05
# In voxels of the template's 2 mm.
NEIGHBOURHOOD = 6  # half the side of the box whose mean is taken off
EDGE = 2  # from the brain's edge: the fluid there is no fold
AROUND = 7  # from the template's ventricles: as far as ventricles of several times their volume reach
DEEP = 8
DARK = 0.75  # of the brain's median: fluid
VENTRICLES_MM = ((-38.0, 38.0), (-60.0, 35.0), (-12.0, 32.0))  # the box of the third and lateral ones, MNI


def folds(seen: F32, template: Template) -> float:
    """Correlation of the fine pattern of a scan in template space, (91, 109, 91), with the template's.

    The scan's brightest and darkest hundredth are clipped; 0 where it is constant.
    """
    inside, where, wanted = _pattern(template)
    low, high = np.percentile(seen[template.mask], [1, 99])
    found = inside.detail(np.clip(seen[inside.box], low, high))[where]
    return float(np.corrcoef(found, wanted)[0, 1]) if found.std() > 0 else 0.0


@lru_cache(maxsize=1)
def _pattern(template: Template) -> tuple[Neighbourhoods, Mask, F64]:
    """(where the mean is taken, where in its box the pattern is compared, the template's pattern there)."""
    inside = Neighbourhoods.of(eroded(template.mask, 1), NEIGHBOURHOOD)
    where = (eroded(template.mask, EDGE) & ~around_ventricles(template))[inside.box]
    return inside, where, inside.detail(template.data[inside.box])[where]


def around_ventricles(template: Template) -> Mask:
    """The template's third and lateral ventricles and what lies within 14 mm of them, (91, 109, 91)."""
    at = points(np.ones_like(template.mask), template.affine).reshape(*template.mask.shape, 3)
    low, high = np.transpose(VENTRICLES_MM)
    boxed = ((at > low) & (at < high)).all(axis=3)
    dark = template.data < DARK * float(np.median(template.data[template.mask]))
    return dilated(boxed & dark & eroded(template.mask, DEEP), AROUND)


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """The cubic neighbourhoods of a mask's voxels, whose means are taken off.

    box : of the mask, a voxel wider.  inside : (I, J, K) bool, the mask in its box.
    reach : half the side of a neighbourhood, voxels.  count : how many of each are in the mask, 1 or more.
    """

    box: tuple[slice, slice, slice]
    inside: Mask
    reach: int
    count: F64

    @classmethod
    def of(cls, mask: Mask, reach: int) -> Neighbourhoods:
        x, y, z = (
            slice(max(0, part.start - 1), min(size, part.stop + 1))
            for part, size in zip(bounding_box(mask), mask.shape, strict=True)
        )
        inside = np.ascontiguousarray(mask[x, y, z])
        return cls((x, y, z), inside, reach, np.maximum(_box_sums(inside.astype(np.float64), reach), 1))

    def detail(self, data: F32) -> F64:
        """A volume in the box, (I, J, K), less the mean of each neighbourhood's voxels in the mask."""
        mean = _box_sums(np.where(self.inside, data, 0.0).astype(np.float64), self.reach) / self.count
        return np.asarray(data - mean, np.float64)


def _box_sums(values: F64, reach: int) -> F64:
    """Sums over the box around every voxel; nothing lies outside the array."""
    side = 2 * reach + 1
    for axis, size in enumerate(values.shape):
        planes = np.moveaxis(values, axis, 0)
        total = np.zeros((size + side, *planes.shape[1:]))  # up to each plane; planes are added as a whole
        for n in range(size):
            np.add(total[n + reach], planes[n], out=total[n + reach + 1])
        total[size + reach + 1 :] = total[size + reach]
        values = np.moveaxis(total[side:] - total[:size], 0, axis)
    return values
