"""Two scans of one head, voxel by voxel: mean absolute error and structural similarity in the brain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hz_runtime.errors import GridMismatch

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIGMA = 1.5
TRUNCATE = 3.5  # a window of 11 voxels, as Wang's
K1, K2 = 0.01, 0.03


def mean_absolute_error(a: F32, b: F32, mask: Mask) -> float:
    """Mean |a - b| inside the mask, in the volumes' unit. Raises GridMismatch for unequal shapes."""
    _same(a, b, mask)
    return float(np.abs(a[mask].astype(np.float64) - b[mask]).mean())


def ssim_map(a: F32, b: F32, span: float = 1.0) -> F64:
    """Structural similarity at every voxel, (D, H, W) float64 in [-1, 1].

    Wang, Bovik, Sheikh & Simoncelli 2004, eq. 13, in three dimensions: means, variances and the covariance
    are weighted by a Gaussian of sigma 1.5 voxels over 11; C1 = (0.01 span)^2, C2 = (0.03 span)^2.

    span : the range that intensities can take, 1 in model space. Raises GridMismatch.
    """
    _same(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)

    def local(v: F64) -> F64:
        return np.asarray(gaussian_filter(v, SIGMA, truncate=TRUNCATE))

    mx, my = local(x), local(y)
    vx, vy, cov = local(x * x) - mx * mx, local(y * y) - my * my, local(x * y) - mx * my
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    above = (2 * mx * my + c1) * (2 * cov + c2)
    return np.asarray(above / ((mx * mx + my * my + c1) * (vx + vy + c2)))


def ssim(a: F32, b: F32, mask: Mask, span: float = 1.0) -> float:
    """Mean structural similarity inside the mask: the air around a brain is equal in all scans."""
    _same(a, b, mask)
    return float(ssim_map(a, b, span)[mask].mean())


def _same(*arrays: NDArray[np.generic]) -> None:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise GridMismatch(f"volumes of {', '.join(map(str, sorted(shapes)))} cannot be compared.")
