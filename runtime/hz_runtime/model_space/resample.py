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
Band = tuple[slice, slice, F32]  # rows of a matrix, the columns they use, and what stands there

_BLOCK = 8  # output voxels a product: few enough for a narrow band of inputs, and for the cache


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


def _bands(weights: F32) -> list[Band]:
    """An (n_out, n_in) matrix of `axis_weights` in blocks of rows, each without the columns it does not use.

    An output voxel has a handful of inputs next to each other. Leaving out the zeros changes no bit of a
    product, and saves most of the work of a dense one.
    """
    starts = range(0, len(weights), _BLOCK)
    spans = [_span(weights[start : start + _BLOCK]) for start in starts]
    blocks = [weights[start : start + _BLOCK, span] for start, span in zip(starts, spans, strict=True)]
    return [(slice(n, n + len(w)), span, w) for n, span, w in zip(starts, spans, blocks, strict=True)]


def _span(array: NDArray[Any]) -> slice:
    """From the first to the last index of the last axis where anything is not zero; empty for all zeros."""
    filled = np.flatnonzero(np.any(array, axis=tuple(range(array.ndim - 1))))
    return slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 0)


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The smallest box that holds every True voxel of an (I, J, K) mask; empty slices where there is none."""
    shadow = np.any(mask, axis=2)  # (I, J)
    return _span(shadow.T), _span(shadow), _span(mask)


def _along_rows(bands: list[Band], stack: F32) -> F32:
    """The matrix of `bands` (n, m) @ stack (..., m, l) -> (..., n, l)."""
    out = np.empty((*stack.shape[:-2], bands[-1][0].stop, stack.shape[-1]), np.float32)
    for rows, span, weights in bands:
        np.matmul(weights, stack[..., span, :], out=out[..., rows, :])
    return out


def _along_columns(bands: list[Band], stack: F32) -> F32:
    """stack (..., m) @ the matrix of `bands` (n, m) transposed -> (..., n)."""
    flat = stack.reshape(-1, stack.shape[-1])
    out = np.empty((len(flat), bands[-1][0].stop), np.float32)
    for rows, span, weights in bands:
        np.matmul(flat[:, span], weights.T, out=out[:, rows])
    return out.reshape(*stack.shape[:-1], -1)


def _apply(data: F32, x: F32, y: F32, z: F32) -> F32:
    """Apply a matrix along each axis of an (I, J, K) volume; (len(x), len(y), len(z)), Fortran order."""
    # Fortran order is how NIfTI stores voxels: the transposed view (K, J, I) is C-contiguous, so that
    # BLAS takes each part of it below without a copy.
    t = np.ascontiguousarray(data.T)
    x_bands, y_bands = _bands(x), _bands(y)
    out = np.empty((len(z), len(y), len(x)), np.float32)
    for rows, span, weights in _bands(z):  # all three axes of a few slices at a time, while they are in cache
        part = (weights @ t[span].reshape(-1, t[0].size)).reshape(-1, *t.shape[1:])
        out[rows] = _along_columns(x_bands, _along_rows(y_bands, part))
    return out.T


def _diagonal(matrix: F64, shape: tuple[int, ...]) -> bool:
    """Whether the off-axis terms move no voxel of the grid by more than 1 % of a voxel."""
    linear = matrix[:3, :3]
    off = linear - np.diag(np.diag(linear))
    # Not the far corner's move: a rotation about the diagonal that leads there leaves that corner alone.
    return bool((np.abs(off) @ np.asarray(shape, np.float64)).max() < 0.01)


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


def averaged(data: F32, affine: F64, mm: float) -> tuple[F32, F64]:
    """A volume on voxels of about `mm`, and their affine; axes whose voxels are larger already stay.

    data : (I, J, K) float32 with `affine` (4, 4), voxel to world mm.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    i, j, k = (min(n, max(1, round(n * size / mm))) for n, size in zip(data.shape, sizes, strict=True))
    grid = scaled_affine(data.shape, affine, (i, j, k))
    return (data, grid) if (i, j, k) == data.shape else (resample(data, affine, (i, j, k), grid), grid)


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
    lowpass = [_lowpass(data.shape[k], thin_shape[k], step[k], factor[k]) for k in range(3)]
    # A margin of zeros, so that the signal is zero outside.
    padded = _apply(np.asarray(data, np.float32), *(np.pad(w, ((1, 1), (0, 0))) for w in lowpass))
    to_thin = np.diag([*(1 / step), 1.0]) @ np.linalg.inv(affine) @ new_affine
    plane = to_thin[:3, :2] @ np.indices(shape[:2], np.float64).reshape(2, -1) + to_thin[:3, 3:] + 1
    out = np.empty(shape, np.float32, order="F")
    for k in range(shape[2]):  # one slice of coordinates at a time: 8 bytes x 3 a voxel add up
        out[:, :, k] = trilinear(padded, plane + k * to_thin[:3, 2:3]).reshape(shape[:2])
    return out


def _lowpass(n_in: int, n_out: int, step: float, width: float) -> F32:
    """Rows of a triangle of the given half-width, one every `step` input voxels; each sums to 1 inside."""
    centre = step * np.arange(n_out)[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(n_in)[None, :] - centre) / width)
    reach = int(np.ceil(width))
    taps = np.floor(centre) + np.arange(-reach, reach + 2)  # a row's phase decides what its triangle sums to
    full = np.maximum(0.0, 1.0 - np.abs(taps - centre) / width).sum(axis=1, keepdims=True)
    return np.asarray(weights / full, np.float32)


def trilinear(volume: F32, coords: F64) -> F32:
    """Linear interpolation of (D, H, W) float32 at voxel coordinates (3, n); edge values continue outward.

    Written out because it is all that a base install would need scipy, 114 MB, for.
    """
    last = np.asarray(volume.shape)[:, None] - 1
    inside = np.clip(coords, 0, last)
    low = np.minimum(inside.astype(np.intp), np.maximum(last - 1, 0))
    part = (inside - low).astype(np.float32)
    weights = (1 - part, part)  # of the near and the far corner along each axis
    flat = np.asfortranarray(volume).ravel(order="F")
    steps = np.cumprod((1, *volume.shape[:2]))
    first = steps @ low
    steps = np.where(last[:, 0] > 0, steps, 0)  # an axis of one voxel has no far corner
    out = np.zeros(coords.shape[1], np.float32)
    for z, y, x in np.ndindex(2, 2, 2):
        out += weights[x][0] * weights[y][1] * weights[z][2] * flat.take(first + steps @ (x, y, z))
    return out


def upsampled_slabs(
    volumes: list[F32],
    affine: F64,
    shape: tuple[int, ...],
    new_affine: F64,
    box: tuple[slice, slice, slice] = (slice(None),) * 3,
) -> Iterator[tuple[slice, list[Any]]]:
    """Coarse, smooth volumes on a fine grid, a slab of slices at a time.

    volumes : each (D, H, W) float32 on the grid of `affine`.
    shape, new_affine : the fine grid.  box : the part of it that is wanted.
    Yields (slice along the last axis of the box, [one (I, J, n) float32 a volume]) until the box is covered;
    edge values continue outward. Slabs keep the memory at a few slices where whole volumes would take 4
    bytes x voxels each.
    """
    to_coarse = np.linalg.inv(affine) @ new_affine
    if not _diagonal(to_coarse, shape):
        volumes, to_coarse = _along_fine_axes(volumes, affine, shape, new_affine)
    coarse_shape = volumes[0].shape
    x, y, z = (
        axis_weights(coarse_shape[k], shape[k], to_coarse[k, k], to_coarse[k, 3], clamp=True)[box[k]]
        for k in range(3)
    )
    used = _span(z)
    y_bands, x_bands = _bands(y), _bands(x)
    planes = [_along_columns(x_bands, _along_rows(y_bands, v.T[used])) for v in volumes]  # (W, J, I)
    for rows, span, weights in _bands(z[:, used]):
        flat = [weights @ p[span].reshape(-1, p[0].size) for p in planes]
        yield rows, [f.reshape(-1, len(y), len(x)).T for f in flat]


def _along_fine_axes(
    volumes: list[F32], affine: F64, shape: tuple[int, ...], new_affine: F64
) -> tuple[list[F32], F64]:
    """Coarse volumes turned onto a coarse grid that lies along the axes of an oblique fine one."""
    fine = np.linalg.norm(new_affine[:3, :3], axis=0)
    coarse = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    turned_shape = tuple(int(max(2, np.ceil(n * f / coarse))) for n, f in zip(shape, fine, strict=True))
    turned_affine = scaled_affine(shape, new_affine, turned_shape)
    to_coarse = np.linalg.inv(affine) @ turned_affine
    index = np.indices(turned_shape[::-1], np.float64)[::-1].reshape(3, -1)  # the first axis runs fastest
    coords = to_coarse[:3, :3] @ index + to_coarse[:3, 3:]
    turned = [trilinear(v, coords).reshape(turned_shape, order="F") for v in volumes]
    return turned, np.linalg.inv(turned_affine) @ new_affine
