"""How far scans of one head agree: the two numbers the demo prints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]


def disagreement(volumes: Sequence[F32], brain: Mask) -> float:
    """Mean absolute difference between every pair of scans inside the brain, as a share of the mean.

    volumes : two or more (I, J, K) on one grid, any units; each is divided by its own mean in `brain`,
        so that a mere change of scale is no disagreement.
    brain : (I, J, K) bool.
    Raises ValueError for fewer than two volumes or one whose brain mean is not positive.
    """
    if len(volumes) < 2:
        raise ValueError("disagreement needs two scans or more")
    scaled = [_scaled(volume[brain]) for volume in volumes]
    return float(np.mean([np.abs(a - b).mean() for a, b in combinations(scaled, 2)]))


def correlation(volume: F32, clean: F32, brain: Mask) -> float:
    """Pearson correlation of two volumes (I, J, K) inside the brain."""
    return float(np.corrcoef(volume[brain].astype(np.float64), clean[brain].astype(np.float64))[0, 1])


def _scaled(values: F32) -> NDArray[np.float64]:
    mean = float(values.mean(dtype=np.float64))
    if not mean > 0:
        raise ValueError(f"the mean inside the brain is {mean:g}")
    return values.astype(np.float64) / mean
