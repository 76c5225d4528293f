"""The MNI152 template that heads are registered to: a file that ships with hz (mni152/LICENSES.txt)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hz_runtime.io.volume import Volume, read_volume
from hz_runtime.model_space.morphology import dilated
from hz_runtime.model_space.recipe import Recipe
from hz_runtime.model_space.resample import resample

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

REACH = 2  # voxels of 2 mm by which a brain may end outside the template's mask
# ICBM 2009a symmetric non-linear (Fonov 2011), T1, skull-stripped, 1 mm, uint8.
FILE = Path(__file__).parent / "mni152" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True, eq=False)
class Template:
    """A skull-stripped T1 template on the recipe's grid.

    name : as in names of results.  sha256 : of the file it was read from.
    data : (91, 109, 91) float32 in [0, 1], zero outside the brain.  affine : (4, 4) voxel to world mm.
    mask : (91, 109, 91) bool, the brain with its ventricles.
    """

    name: str
    sha256: str
    data: F32
    affine: F64
    mask: Mask

    @cached_property
    def centre_mm(self) -> F64:
        """(3,) float64: centre of mass of the mask, world mm."""
        centre: F64 = points(self.mask, self.affine).mean(axis=0)
        return centre

    @cached_property
    def around(self) -> Mask:
        """(91, 109, 91) bool: the brain and what lies within REACH of it, which a scan is compared in."""
        return dilated(self.mask, REACH)


def points(mask: Mask, affine: F64) -> F64:
    """(n, 3) float64: world mm of every True voxel of an (I, J, K) mask."""
    at: F64 = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    return at


def mni152_volume() -> Volume:
    """The T1-weighted MNI152 brain as its file holds it: 197 x 233 x 189 voxels of 1 mm, 0 to 255."""
    return read_volume(FILE)


@lru_cache(maxsize=1)
def mni152() -> Template:
    """The MNI152 template at 2 mm, 91 x 109 x 91 voxels."""
    volume = mni152_volume()
    recipe = Recipe()
    grid = recipe.template_shape, recipe.template_affine
    data = resample(volume.data / volume.data.max(), volume.affine, *grid)
    inside = resample((volume.data > 0).astype(np.float32), volume.affine, *grid) > 0.5
    return Template(recipe.template, volume.sha256, data * inside, recipe.template_affine, inside)
