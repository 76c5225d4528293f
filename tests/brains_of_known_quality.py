"""A made-up brain with enough white matter to measure image quality in, also with noise of known size."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume

F32 = NDArray[np.float32]
SHAPE = (72, 88, 68)  # voxels of 2 mm


def volume_of(data: F32, mm: float = 2.0) -> Volume:
    affine = np.diag([mm, mm, mm, 1.0])
    geometry = Geometry.from_affine(data.shape, affine)
    return Volume(np.asfortranarray(data, np.float32), affine, geometry, "", "float32")


@cache
def made_up() -> F32:
    """A brain of white matter, a grey rind of folds, and fluid, without noise; air 0, white matter 100."""
    at = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * 2 for n in SHAPE), indexing="ij")
    radius = np.sqrt(sum((x / r) ** 2 for x, r in zip(at, (66.0, 82.0, 62.0), strict=True)))
    folds = 0.05 * sum(np.sin(x / 4.0) for x in at) / 3
    data = np.where(radius + folds < 0.88, 100.0, np.where(radius + folds < 0.97, 72.0, 30.0))
    data[np.sqrt(sum((x / r) ** 2 for x, r in zip(at, (9.0, 20.0, 9.0), strict=True))) < 1] = 30.0
    data = gaussian_filter(data, 0.6)
    return np.where(radius < 1, data, 0.0).astype(np.float32)


def noisy(sigma: float) -> F32:
    noise = np.random.default_rng(0).normal(0, sigma, SHAPE)
    return np.where(made_up() > 0, np.maximum(made_up() + noise, 0.01), 0).astype(np.float32)
