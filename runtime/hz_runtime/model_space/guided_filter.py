"""Harmonization at native resolution, without invented anatomy.

The network sees its grid, of the paper's 64^3 voxels or another. Its effect is a smooth, local change of
intensity, so that effect is fitted where the network works and applied where the scan is sharp: each native
voxel only ever gets a local linear map of itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import GridMismatch
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.air import with_air_lowest
from hz_runtime.model_space.foreground import air_of, foreground_threshold, thinned
from hz_runtime.model_space.recipe import ModelInput, Recipe
from hz_runtime.model_space.resample import bounding_box, upsampled_slabs

F32 = NDArray[np.float32]

RADIUS = 1  # voxels of the grid: about 3 mm of the paper's
EPS = 1e-4  # squared intensity units


def guided_coefficients(source: F32, target: F32, radius: int = RADIUS, eps: float = EPS) -> tuple[F32, F32]:
    """Local affine map that turns one volume into another.

    Guided filter, He, Sun & Tang 2013, eqs. 5-6 and 8, in three dimensions.

    source, target : (D, H, W) float32 on one grid, intensities in [0, 1].
    radius : window half-width in voxels.  eps : regulariser, squared intensity units.
    Returns (a, b), each (D, H, W) float32, averaged over the windows that hold a voxel, with
    target ~ a * source + b.
    Raises GridMismatch where the shapes differ.
    """
    if source.shape != target.shape:
        raise GridMismatch(f"source is {source.shape} and target {target.shape}; they must share a grid.")

    def window_mean(x: F32) -> F32:
        return _box_mean(x, radius)

    mean_source, mean_target = window_mean(source), window_mean(target)
    covariance = window_mean(source * target) - mean_source * mean_target
    variance = window_mean(source * source) - mean_source * mean_source
    a = np.asarray(covariance / (np.maximum(variance, 0) + np.float32(eps)), np.float32)
    b = mean_target - a * mean_source
    return window_mean(a), window_mean(b)


def _box_mean(x: F32, radius: int) -> F32:
    """Mean over the (2 * radius + 1)^3 voxels around each one; edge values continue outward."""
    width = 2 * radius + 1
    x = np.pad(x, radius, "edge")
    for axis in range(3):
        size = x.shape[axis] - 2 * radius
        shifted = [x[(slice(None),) * axis + (slice(start, start + size),)] for start in range(width)]
        x = sum(shifted[1:], shifted[0]) * np.float32(1 / width)
    return x


def native_harmonized(
    volume: Volume, prepared: ModelInput, harmonized: F32, recipe: Recipe | None = None
) -> F32:
    """The harmonized scan on its own voxels.

    volume : the scan, (I, J, K).  prepared : the same scan on the network's grid.
    harmonized : (D, H, W) float32, what the network made of `prepared.grid`.
    recipe : of both, whose `filter_radius` and `filter_eps` are taken where they are set.
    Returns (I, J, K) float32 in Fortran order on the RAS grid of `volume`, intensities in [0, 1], zero
    outside the brain.
    Raises GridMismatch where `harmonized` does not lie on the prepared grid.
    """
    recipe = recipe or Recipe()
    radius, eps = recipe.filter_radius or RADIUS, recipe.filter_eps or EPS
    a, b = guided_coefficients(prepared.grid, harmonized, radius, eps)
    volume = with_air_lowest(volume)  # the intensities that `prepared` was made of
    scale = np.float32(1 / (prepared.high - prepared.low))
    floor = _native_floor(volume)
    out = np.zeros(volume.data.shape, np.float32, order="F")
    box = bounding_box(volume.data > floor)  # about half of a scan is air around the head
    brain, into = volume.data[box], out[box]
    slabs = upsampled_slabs([a, b], prepared.grid_affine, volume.data.shape, volume.affine, box)
    for part, (slope, intercept) in slabs:
        raw = brain[:, :, part]
        scaled = raw - np.float32(prepared.low)
        scaled *= scale
        scaled *= slope
        scaled += intercept
        np.clip(scaled, 0, 1, out=scaled)
        np.copyto(into[:, :, part], scaled, where=raw > floor)
    return out


def _native_floor(volume: Volume) -> float:
    """Background of a skull-stripped scan: everything above its air, dark CSF too, is brain.

    Where no single value fills the air, the foreground threshold has to do.
    """
    thin, _ = thinned(volume)
    air = air_of(thin)
    return foreground_threshold(thin) if air is None else air
