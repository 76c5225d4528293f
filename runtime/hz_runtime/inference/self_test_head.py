"""A brain made of formulas, the input of a bundle's self-test: of nobody, and the same everywhere.

It has cortex with folds, white matter, ventricles, a receive field and noise, in the recipe's template space,
turned to an order of voxels that is not hz's own. It is no simulation of anatomy: what a network answers
about it means nothing, and only has to be the same on every engine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import write_volume

F32 = NDArray[np.float32]
SHAPE = (60, 72, 58)  # voxels of 3 mm
ORIGIN = (-88.0, -124.0, -78.0)  # mm, of the first voxel
CENTRE = (0.0, -18.0, 8.0)  # of the brain, mm
RADII = (66.0, 84.0, 60.0)  # mm
SEED = 19


def made_brain() -> tuple[F32, NDArray[np.float64]]:
    """(I, J, K) float32 in [0, 1], zero outside the brain, in RAS order, and its (4, 4) affine in mm."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = ORIGIN
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) * 3.0 + np.array(ORIGIN)
    x, y, z = np.moveaxis((at - np.array(CENTRE)) / np.array(RADII), -1, 0)
    away = np.sqrt(x * x + y * y + z * z)  # 1 at the brain's edge
    folds = 0.05 * np.sin(9 * x + 2) * np.sin(11 * y) * np.sin(10 * z + 1)
    ventricles = np.sqrt((np.abs(x) - 0.14) ** 2 * 60 + (y + 0.05) ** 2 * 9 + (z - 0.05) ** 2 * 30) < 1
    tissue = np.where(away + folds < 0.72, 0.85, 0.55)  # white matter, grey matter
    tissue = np.where((away + 2 * folds > 0.97) | ventricles, 0.2, tissue)  # fluid
    rng = np.random.default_rng(SEED)
    seen = tissue * np.exp(0.1 * x - 0.15 * y + 0.1 * z) + rng.normal(0, 0.01, SHAPE)
    seen = np.where(away < 1, np.clip(seen, 0.01, None), 0)
    return np.asarray(seen / seen.max(), np.float32), affine


def scan_bytes() -> bytes:
    """`made_brain` as a .nii.gz of int16 in the order of voxels PSL."""
    data, affine = made_brain()
    turned = np.moveaxis(data, (0, 1, 2), (2, 0, 1))[::-1, :, ::-1]  # to (P, S, L)
    to_ras = np.zeros((4, 4))
    to_ras[1, 0], to_ras[1, 3] = -1, SHAPE[1] - 1
    to_ras[2, 1] = 1
    to_ras[0, 2], to_ras[0, 3] = -1, SHAPE[0] - 1
    to_ras[3, 3] = 1
    geometry = Geometry.from_affine(turned.shape, affine @ to_ras)
    with tempfile.TemporaryDirectory(prefix="hz-self-test-") as folder:
        path = Path(folder) / "head.nii.gz"
        write_volume(path, np.ascontiguousarray(geometry.to_ras(turned)), geometry, dtype="int16")
        return path.read_bytes()
