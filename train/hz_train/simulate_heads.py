"""Heads to simulate from: tissue maps of real brains on one grid, ready to be deformed and aged.

A head is either the MNI152 template's grey and white matter maps, which the installed nilearn carries, or a
label map (0 background, 1 CSF, 2 grey matter, 3 white matter) of a skull-stripped brain. Heads are turned to
RAS and moved, not rotated, so that their centre lies where the recipe expects a brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_fill_holes, distance_transform_edt, gaussian_filter, label
from scipy.special import expit

from hz_runtime.errors import UsageError
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import Recipe
from hz_runtime.model_space.resample import resample, scaled_affine

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

BUILT_IN = "MNI152"
BUILT_IN_AGE = 25.0  # of the 152 young adults behind the template
BUILT_IN_CM3 = 1450.0  # the template itself is a fifth larger than most heads
UNKNOWN_AGE = 40.0  # of a label map that comes without one

VENTRICLE_CENTRE_MM = (0.0, 6.0, 2.0)  # of the lateral ventricles, from the centre of the brain
VENTRICLE_REACH_MM = (34.0, 54.0, 28.0)  # half-axes of an ellipsoid around them, in a brain of 1450 cm3
VENTRICLE_DEPTH_MM = 16.0  # below the brain's surface, which the Sylvian fissure is not
MIDLINE_MM = 5.0  # from the middle, where CSF above and behind the ventricles is the fissure and cisterns
MIDLINE_REACH_MM = (5.0, 26.0, 12.0)
EDGE_MM = 0.7  # how softly a ventricle ends
LEAST_CSF = 2e-3  # share of CSF in solid tissue; its logit is what atrophy starts from
SHIFTS = np.linspace(-8.0, 8.0, 65)  # of the ventricles' wall in mm, and of the logit of CSF elsewhere


@dataclass(frozen=True)
class Grid:
    """Voxels of every simulated volume: shape (D, H, W) and affine (4, 4), voxel to world mm, RAS."""

    shape: tuple[int, int, int]
    affine: F64

    @classmethod
    def of(cls, size: int | None) -> Grid:
        """`size` voxels a side over the default recipe's template box; None for the template's own 2 mm."""
        recipe = Recipe()
        shape = recipe.template_shape if size is None else (size, size, size)
        return cls(shape, scaled_affine(recipe.template_shape, recipe.template_affine, shape))

    @property
    def spacing(self) -> F64:
        """(3,) mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def voxel_cm3(self) -> float:
        return float(self.spacing.prod() / 1000)


@dataclass(frozen=True, eq=False)
class Head:
    """One brain as smooth fields on a grid, each (D, H, W) float32.

    brain : share of the voxel inside the skull-stripped brain.
    csf : logit of the share of CSF outside the lateral ventricles.
    ventricle : mm inside (positive) or outside the wall of the lateral and third ventricles.
    grey : share of grey matter in what is not CSF.
    depth : 0 at the cortex to 1 far inside white matter, where nuclei are brighter than cortex.
    age : years, of which its atrophy is typical.
    """

    name: str
    grid: Grid
    brain: F32
    csf: F32
    ventricle: F32
    grey: F32
    depth: F32
    age: float

    @property
    def fields(self) -> tuple[F32, ...]:
        return self.csf, self.ventricle, self.grey, self.depth

    @cached_property
    def ventricle_cm3(self) -> F64:
        """Volume of the ventricles with their wall moved outward by each of SHIFTS mm."""
        inside = self.ventricle[self.brain > 0.5]
        return np.array([expit((inside + s) / EDGE_MM).sum() for s in SHIFTS]) * self.grid.voxel_cm3

    @cached_property
    def grey_cm3(self) -> F64:
        """Volume of grey matter with each of SHIFTS added to the logit of CSF."""
        inside = self.brain > 0.5
        csf, grey = self.csf[inside], self.grey[inside]
        solid = 1 - expit(self.ventricle[inside] / EDGE_MM)
        return np.array([(solid * (1 - expit(csf + s)) * grey).sum() for s in SHIFTS]) * self.grid.voxel_cm3


def built_in_head(grid: Grid) -> Head:
    """The MNI152 template as a head of 1450 cm3. Raises UsageError where nilearn is not installed."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise UsageError(
            "the built-in anatomy is the MNI152 maps of nilearn, which is not installed.",
            "pip install 'hz-mri[train]'   or give label maps (--anatomy).",
        ) from error
    import nibabel as nib

    template = Grid.of(None)
    maps = [
        nib.as_closest_canonical(load(resolution=1))
        for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    ]
    grey, white = (
        np.clip(resample(np.asarray(m.dataobj, np.float32), m.affine, template.shape, template.affine), 0, 1)
        for m in maps
    )
    affine = template.affine
    brain = closed(grey + white > 0.2, 2)
    shrink = (BUILT_IN_CM3 / (float(brain.sum()) * template.voxel_cm3)) ** (1 / 3)
    return _head(BUILT_IN, grid, brain, grey, white, np.diag([shrink] * 3 + [1.0]) @ affine, BUILT_IN_AGE)


def label_head(path: Path, grid: Grid, age: float | None = None) -> Head:
    """A label map as a head.

    age : years of the person, where known; else 40. Raises UsageError for other labels than 0 to 3, or where
    one of them is missing; ScanError where the file cannot be read.
    """
    volume = read_volume(path)
    found = sorted(set(np.unique(volume.data).tolist()))
    if found != [0.0, 1.0, 2.0, 3.0]:
        shown = ", ".join(f"{value:g}" for value in found[:8]) + (" ..." if len(found) > 8 else "")
        raise UsageError(
            f"{path.name} holds the values {shown}; anatomy is a label map.",
            "Label the brain 0 background, 1 CSF, 2 grey matter, 3 white matter (as FSL's fast does).",
        )
    spacing = volume.spacing
    soft = [
        gaussian_filter(np.asarray(volume.data == value, np.float32), 1.0 / spacing) for value in (1, 2, 3)
    ]
    total = np.maximum(soft[0] + soft[1] + soft[2], 1e-6)
    brain = np.asarray(volume.data > 0)
    grey, white = (np.where(brain, part / total, 0).astype(np.float32) for part in soft[1:])
    return _head(path.name, grid, brain, grey, white, volume.affine, UNKNOWN_AGE if age is None else age)


def closed(mask: Mask, voxels: int) -> Mask:
    """The mask with its clefts closed, as skull stripping keeps them, and its holes filled."""
    padded = np.pad(mask, voxels + 1)
    grown = distance_transform_edt(~padded) <= voxels
    kept = distance_transform_edt(grown) > voxels
    filled: Mask = binary_fill_holes(kept)
    return filled[(slice(voxels + 1, -voxels - 1),) * 3]


def _head(name: str, grid: Grid, brain: Mask, grey: F32, white: F32, affine: F64, age: float) -> Head:
    """Fields from maps on any grid: brain bool, grey and white shares of the voxel."""
    centre = affine[:3, :3] @ np.argwhere(brain).mean(0) + affine[:3, 3]
    placed = affine.copy()
    placed[:3, 3] += np.asarray(Recipe().centre_mm) - centre
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    csf = np.where(brain, np.clip(1 - grey - white, 0, 1), 0).astype(np.float32)
    ventricles = find_ventricles(csf, brain, placed, name)
    outer = np.clip(np.where(ventricles, 0, csf), LEAST_CSF, 1 - LEAST_CSF)
    around = [gaussian_filter(part, 2.0 / spacing) for part in (grey, grey + white)]
    share = (grey + 0.05 * around[0]) / np.maximum(grey + white + 0.05 * around[1], 1e-4)
    fields = {
        "brain": brain.astype(np.float32),
        "csf": np.log(outer / (1 - outer)),
        "ventricle": signed_distance(ventricles, spacing),
        "grey": np.clip(share, 0, 1),
        "depth": gaussian_filter(white, 8.0 / spacing),
    }
    on_grid = {key: _resampled(np.asarray(field, np.float32), placed, grid) for key, field in fields.items()}
    return Head(name=name, grid=grid, age=age, **on_grid)


def _resampled(field: F32, affine: F64, grid: Grid) -> F32:
    """A field on the grid, continued at its edge value and not by zero outside its own box."""
    background = np.float32(field[0, 0, 0])
    moved: F32 = resample(field - background, affine, grid.shape, grid.affine) + background
    return np.ascontiguousarray(moved)


def find_ventricles(csf: F32, brain: Mask, affine: F64, name: str) -> Mask:
    """The lateral ventricles (and most of the third): CSF far below the surface around the brain's centre.

    csf : (I, J, K) share of the voxel.  brain : (I, J, K).  affine : (4, 4), the brain's centre at the
    recipe's `centre_mm`. Raises UsageError, naming the map, where there are none.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = (float(brain.sum()) * float(spacing.prod()) / 1000 / BUILT_IN_CM3) ** (1 / 3)
    centre = np.asarray(Recipe().centre_mm) + size * np.asarray(VENTRICLE_CENTRE_MM)
    index = np.argwhere((csf > 0.5) & brain)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    offset = (world - centre) / size
    near = ((offset / VENTRICLE_REACH_MM) ** 2).sum(1) < 1
    near &= (np.abs(offset[:, 0]) > MIDLINE_MM) | (((offset / MIDLINE_REACH_MM) ** 2).sum(1) < 1)
    deep = distance_transform_edt(brain, sampling=spacing)[tuple(index.T)] > size * VENTRICLE_DEPTH_MM
    candidates = np.zeros(csf.shape, bool)
    candidates[tuple(index[near & deep].T)] = True
    parts, count = label(candidates, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:] * float(spacing.prod()) / 1000
    if not count or sizes.max() < 0.5:
        raise UsageError(
            f"{name} shows no ventricles: no CSF deep inside the brain.",
            "Check that 1 is CSF, that the brain is whole, and its voxels are no larger than some 4 mm.",
        )
    found = np.isin(parts, np.flatnonzero(sizes > 0.3) + 1)
    # Where the two sides of a wide ventricle meet, the middle is ventricle too.
    across = np.ones((2 * round(size * MIDLINE_MM * 1.4 / float(spacing[0])) + 1, 1, 1))
    met: Mask = found | (binary_closing(found, across) & (csf > 0.5))
    return met


def signed_distance(mask: Mask, spacing: F64) -> F32:
    """mm to the edge of the mask, positive inside; (I, J, K) float32."""
    half = float(spacing.mean()) / 2
    inside = distance_transform_edt(mask, sampling=spacing)
    outside = distance_transform_edt(~mask, sampling=spacing)
    distance = np.where(mask, inside - half, half - outside)
    return np.asarray(gaussian_filter(distance, 0.8 / spacing), np.float32)
