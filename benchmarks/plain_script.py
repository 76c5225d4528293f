"""The script one would write without hz: nibabel, scipy and eager torch, one scan after the other.

It prepares, harmonizes and goes back to native resolution as hz does, in the usual library calls, and
writes the same volume and age. It has no checks, no verification, no report and no resume. Written for a
fair comparison: float32 where hz has float32, the template grid's affine resampling in one call, torch on
all threads, and no work that the output does not need.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from scipy.cluster.vq import kmeans2

TEMPLATE_SHAPE = (91, 109, 91)
TEMPLATE_AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
GRID = (64, 64, 64)
CENTRE = np.array([0.0, -21.0, 11.0])


def onto(data: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """Antialias, then resample linearly."""
    step = np.linalg.inv(affine) @ target
    coarser = np.abs(np.diag(step)[:3])
    if (coarser > 1).any():
        data = ndimage.gaussian_filter(data, np.maximum(coarser - 1, 0) / 2)
    return ndimage.affine_transform(data, step[:3, :3], step[:3, 3], shape, order=1)


def grid_affine() -> np.ndarray:
    """The 64^3 grid over the template's box."""
    factor = np.array(TEMPLATE_SHAPE) / np.array(GRID)
    affine = TEMPLATE_AFFINE.copy()
    affine[:3, :3] *= factor
    affine[:3, 3] += TEMPLATE_AFFINE[:3, :3] @ ((factor - 1) / 2)
    return affine


def white_level(volume: np.ndarray) -> float:
    """Median of the brightest of three clusters."""
    inside = volume[volume > 0.05].astype(np.float64)
    centres, _ = kmeans2(inside, np.percentile(inside, [10, 50, 90]), minit="matrix")
    return float(np.median(inside[inside > np.sort(centres)[1:].mean()]))


def harmonize_one(
    path: Path, out: Path, generator: torch.nn.Module, age: torch.nn.Module | None, level: float = 0.0
) -> float | None:
    """One scan to one harmonized scan at native resolution; returns the predicted age.

    level : that white matter is brought to in what the generator makes; 0 leaves it.
    """
    image = nib.load(path)
    ras = nib.as_closest_canonical(image)
    data = np.asarray(ras.dataobj, np.float32)
    brain = data > 0.1 * np.percentile(data[data > 0], 98)
    centroid = ras.affine[:3, :3] @ np.array(ndimage.center_of_mass(brain)) + ras.affine[:3, 3]
    shift = CENTRE - centroid
    affine = ras.affine.copy()
    if np.linalg.norm(shift) > 8:
        affine[:3, 3] += shift

    template = onto(data, affine, TEMPLATE_SHAPE, TEMPLATE_AFFINE)
    small = onto(template, TEMPLATE_AFFINE, GRID, grid_affine())
    low = small.min()
    inside = small > low + 0.1 * (np.percentile(small[small > low], 98) - low)
    high = low + 2 * (np.median(small[inside]) - low)
    small = np.clip((small - low) / (high - low), 0, 1)

    with torch.no_grad():
        made = generator(torch.from_numpy(small[None, None].astype(np.float32))).clamp(0, 1)
        if level:
            made = (made * (level / white_level(made.numpy()))).clamp(0, 1)
        years = None if age is None else float(age(made)[0, 0])
    target = made[0, 0].numpy()

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, 3)

    mean_in, mean_out = mean(small), mean(target)
    a = (mean(small * target) - mean_in * mean_out) / (mean(small * small) - mean_in**2 + 1e-4)
    b = mean_out - a * mean_in
    step = np.linalg.inv(grid_affine()) @ affine
    a, b = (
        ndimage.affine_transform(
            mean(x), step[:3, :3], step[:3, 3], data.shape, order=1, mode="nearest", output=np.float32
        )
        for x in (a, b)
    )
    native = np.clip(a * (data - low) / (high - low) + b, 0, 1) * (data > 0)

    turn = nib.orientations.ornt_transform(nib.io_orientation(ras.affine), nib.io_orientation(image.affine))
    back = nib.orientations.apply_orientation(native, turn)
    result = nib.Nifti1Image(back.astype(np.float32), image.affine, image.header)
    result.set_data_dtype(np.int16)
    nib.save(result, out)
    return years


def harmonize_all(
    paths: list[Path],
    folder: Path,
    generator: torch.nn.Module,
    age: torch.nn.Module | None,
    level: float = 0.0,
) -> list[float | None]:
    """Every scan, one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    return [harmonize_one(path, folder / path.name, generator, age, level) for path in paths]
