"""Grids and resampling: a scan onto the model's grid, coefficients back onto the scan's.

Every grid here is a shape and a 4x4 affine from voxel indices (voxel centres) to world millimetres,
RAS+. Axis-aligned resampling, by far the usual case, is three small matrix products; an oblique scan
takes one detour over an intermediate grid along its own axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SLAB = 16  # slices a step of `upsampled_slabs`: small enough to stay in cache, large enough for BLAS


def scaled_affine(shape: tuple[int, ...], affine: F64, new_shape: tuple[int, ...]) -> F64:
    """The affine of a grid with `new_shape` voxels that covers the same box.

    Boxes are counted edge to edge, so that resizing 91 voxels of 2 mm to 64 gives 2.84 mm and moves
    nothing. Returns (4, 4) float64.
    """
    factors = np.asarray(shape, np.float64) / np.asarray(new_shape, np.float64)
    result = np.array(affine, np.float64)
    result[:3, :3] = affine[:3, :3] * factors
    result[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((factors - 1) / 2)
    return result


def axis_weights(n_in: int, n_out: int, scale: float, offset: float, *, clamp: bool = False) -> F32:
    """Matrix (n_out, n_in) float32 of antialiased linear interpolation along one axis.

    Output voxel i lies at input coordinate scale * i + offset. The kernel is a triangle as wide as the
    larger of the two spacings: plain linear interpolation when enlarging, and a low-pass when shrinking,
    so that detail the output cannot hold is averaged and not aliased. Outside the input the signal is
    zero, or with `clamp` its edge value.
    """
    width = max(1.0, abs(scale))
    centre = scale * np.arange(n_out) + offset
    reach = int(np.ceil(width))
    base = np.floor(centre).astype(np.int64)
    taps = base[:, None] + np.arange(-reach, reach + 2)
    weights = np.maximum(0.0, 1.0 - np.abs(taps - centre[:, None]) / width)
    weights /= weights.sum(1, keepdims=True)
    if clamp:
        taps = np.clip(taps, 0, n_in - 1)
    rows = np.broadcast_to(np.arange(n_out)[:, None], taps.shape)
    inside = (taps >= 0) & (taps < n_in)
    matrix = np.zeros((n_out, n_in), np.float64)
    np.add.at(matrix, (rows[inside], taps[inside]), weights[inside])
    return np.asarray(matrix, np.float32)


def _apply(data: F32, x: F32 | None, y: F32 | None, z: F32 | None) -> F32:
    """Apply a matrix along each axis of an (I, J, K) volume; None leaves an axis as it is."""
    # Fortran order is how NIfTI stores voxels: the transposed view (K, J, I) is C-contiguous, so that
    # each product below is one BLAS call without a copy.
    t = np.ascontiguousarray(data.T)
    if z is not None:
        t = (z @ t.reshape(t.shape[0], -1)).reshape(-1, t.shape[1], t.shape[2])
    if y is not None:
        t = np.matmul(y, t)
    if x is not None:
        t = (t.reshape(-1, t.shape[2]) @ x.T).reshape(t.shape[0], t.shape[1], -1)
    return t.T


def _diagonal(matrix: F64, shape: tuple[int, ...]) -> bool:
    """Whether the off-axis terms move no voxel of the grid by more than 1 % of a voxel."""
    linear = matrix[:3, :3]
    off = linear - np.diag(np.diag(linear))
    return bool(np.abs(off @ np.asarray(shape, np.float64)).max() < 0.01)


def resample(data: F32, affine: F64, shape: tuple[int, ...], new_affine: F64) -> F32:
    """Resample a volume onto another grid, antialiased; zero outside the field of view.

    data : (I, J, K) float32 with `affine` (4, 4), voxel to world mm.
    shape, new_affine : the grid wanted.
    Returns `shape` float32, Fortran order.
    """
    to_input = np.linalg.inv(affine) @ new_affine
    if _diagonal(to_input, shape):
        x, y, z = (axis_weights(data.shape[k], shape[k], to_input[k, k], to_input[k, 3]) for k in range(3))
        return _apply(np.asarray(data, np.float32), x, y, z)
    return _resample_oblique(data, affine, shape, new_affine)


def _resample_oblique(data: F32, affine: F64, shape: tuple[int, ...], new_affine: F64) -> F32:
    """Low-pass and thin out along the scan's own axes, then interpolate the rest of the way.

    The low-pass has the width of the wanted spacing and is sampled twice as densely, which leaves the
    second, linear step little to blur.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = float(np.linalg.norm(new_affine[:3, :3], axis=0).min())
    factor = np.maximum(1.0, wanted / spacing)  # low-pass width, in input voxels
    step = np.maximum(1.0, factor / 2)
    thin_shape = tuple(int(np.ceil(n / s)) for n, s in zip(data.shape, step, strict=True))
    weights = [_lowpass(data.shape[k], thin_shape[k], step[k], factor[k]) for k in range(3)]
    thin = _apply(np.asarray(data, np.float32), *weights)
    to_thin = np.diag([*(1 / step), 1.0]) @ np.linalg.inv(affine) @ new_affine
    padded = np.pad(thin, 1)  # so that the signal is zero outside
    out = np.empty(shape, np.float32, order="F")
    for k in range(shape[2]):  # one slab of coordinates at a time: 8 bytes x 3 a voxel add up
        index = np.indices((shape[0], shape[1], 1), np.float64).reshape(3, -1)
        index[2] = k
        coords = to_thin[:3, :3] @ index + to_thin[:3, 3:]
        out[:, :, k] = trilinear(padded, coords + 1).reshape(shape[:2])
    return out


def _lowpass(n_in: int, n_out: int, step: float, width: float) -> F32:
    """Rows of a triangle of the given half-width, one every `step` input voxels."""
    distance = np.abs(np.arange(n_in)[None, :] - step * np.arange(n_out)[:, None])
    weights = np.maximum(0.0, 1.0 - distance / width)
    full = np.maximum(0.0, 1.0 - np.abs(np.arange(-np.ceil(width), np.ceil(width) + 1)) / width).sum()
    return np.asarray(weights / full, np.float32)


def trilinear(volume: F32, coords: F64) -> F32:
    """Linear interpolation of (D, H, W) float32 at voxel coordinates (3, n); edge values continue outward.

    Written out because it is all that a base install would need scipy, 114 MB, for.
    """
    last = np.asarray(volume.shape)[:, None] - 1
    inside = np.clip(coords, 0, last)
    low = np.minimum(inside.astype(np.intp), np.maximum(last - 1, 0))
    part = (inside - low).astype(np.float32)
    high = np.minimum(low + 1, last)
    out = np.zeros(coords.shape[1], np.float32)
    for corner in range(8):
        picked = [(high if corner >> axis & 1 else low)[axis] for axis in range(3)]
        weight = np.ones_like(out)
        for axis in range(3):
            weight *= part[axis] if corner >> axis & 1 else 1 - part[axis]
        out += weight * volume[picked[0], picked[1], picked[2]]
    return out


def upsampled_slabs(
    volumes: list[F32], affine: F64, shape: tuple[int, ...], new_affine: F64
) -> Iterator[tuple[slice, list[Any]]]:
    """Coarse, smooth volumes on a fine grid, a slab of slices at a time.

    volumes : each (D, H, W) float32 on the grid of `affine`.
    Yields (slice along the last axis, [one (I, J, n) float32 a volume]) until the last axis of `shape`
    is covered; edge values continue outward. Slabs keep the memory at a few slices where whole volumes
    would take 4 bytes x voxels each.
    """
    to_coarse = np.linalg.inv(affine) @ new_affine
    if not _diagonal(to_coarse, shape):
        volumes, to_coarse = _along_fine_axes(volumes, affine, shape, new_affine)
    coarse_shape = volumes[0].shape
    x, y, z = (
        axis_weights(coarse_shape[k], shape[k], to_coarse[k, k], to_coarse[k, 3], clamp=True)
        for k in range(3)
    )
    planes = [np.ascontiguousarray(_apply(v, x, y, None).T) for v in volumes]  # (W, J, I)
    for start in range(0, shape[2], SLAB):
        part = slice(start, min(start + SLAB, shape[2]))
        flat = [z[part] @ p.reshape(p.shape[0], -1) for p in planes]
        yield part, [f.reshape(-1, shape[1], shape[0]).T for f in flat]


def _along_fine_axes(
    volumes: list[F32], affine: F64, shape: tuple[int, ...], new_affine: F64
) -> tuple[list[F32], F64]:
    """Coarse volumes turned onto a coarse grid that lies along the axes of an oblique fine one."""
    fine = np.linalg.norm(new_affine[:3, :3], axis=0)
    coarse = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    turned_shape = tuple(int(max(2, np.ceil(n * f / coarse))) for n, f in zip(shape, fine, strict=True))
    turned_affine = scaled_affine(shape, new_affine, turned_shape)
    to_coarse = np.linalg.inv(affine) @ turned_affine
    index = np.indices(turned_shape, np.float64).reshape(3, -1)
    coords = to_coarse[:3, :3] @ index + to_coarse[:3, 3:]
    turned = [trilinear(v, coords).reshape(turned_shape) for v in volumes]
    return turned, np.linalg.inv(turned_affine) @ new_affine
