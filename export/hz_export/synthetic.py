"""Smooth made-up heads, for timing where there are no scans. Never evidence of quality."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SOURCE = "simulated: smooth ellipsoids with a rim, ventricles and a bias field; no scan of a person"


def synthetic_heads(n: int, shape: tuple[int, int, int] = (64, 64, 64), seed: int = 0) -> NDArray[np.float32]:
    """(n, D, H, W) float32 in [0, 1], zero outside the brain, as a recipe would have prepared them.

    Each is an ellipsoid of its own size with darker grey matter around white, dark ventricles, a few slow
    waves for folds and a linear bias field: smooth, like a scan resampled to this grid, unlike noise.
    """
    rng = np.random.default_rng(seed)
    heads = np.empty((n, *shape), np.float32)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    for head in heads:
        a, b, c = rng.uniform([0.68, 0.78, 0.62], [0.76, 0.86, 0.72])
        radius = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        waves = sum(
            np.cos(np.pi * (fx * x + fy * y + fz * z) + phase)
            for fx, fy, fz, phase in rng.uniform([-4, -4, -4, 0], [4, 4, 4, 2 * np.pi], (8, 4))
        )
        white = _step(0.78 + 0.02 * waves - radius, 0.03)
        ventricles = _step(0.22 - np.sqrt((x / 0.5) ** 2 + (y / 1.0) ** 2 + (z / 0.6) ** 2), 0.04)
        tissue = (0.55 + 0.35 * white) * (1 - 0.75 * ventricles)
        bias = 1 + 0.08 * (rng.normal() * x + rng.normal() * y + rng.normal() * z)
        inside = _step(1 - radius, 0.02)
        volume = np.where(inside > 0.05, tissue * bias * inside, 0.0)
        head[:] = np.clip(volume / volume.max(), 0, 1)
    return heads


def _step(distance: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """From 0 to 1 around zero, over about four times `width`."""
    return 0.5 * (1 + np.tanh(distance / width))
