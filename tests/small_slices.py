"""Small made-up brains as prepared volumes, on a reference site and on a second one: paired truth."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (32, 32, 8)


def brains(count: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """(count, D, H, W) float32 in [0, 1]: ellipsoids with folded tissues, zero outside."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    made = []
    for _ in range(count):
        folds = gaussian_filter(rng.standard_normal(shape), 1.5)
        folds /= folds.std()
        a, b = rng.uniform(0.7, 0.9, 2)
        inside = (x / a) ** 2 + (y / b) ** 2 + (z / 1.05) ** 2 < 1
        tissue = np.where(folds > 0.6, 0.9, np.where(folds > -0.8, 0.6, 0.2))
        made.append(gaussian_filter(tissue * inside, 0.6) * inside)
    return np.array(made, np.float32)


def elsewhere(volumes: np.ndarray, exponent: float = 2.2) -> np.ndarray:
    """The same brains on a site with another contrast."""
    return (volumes**exponent).astype(np.float32)
