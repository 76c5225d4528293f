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
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]
Band = tuple[slice, slice, F32]  # rows of a matrix, the columns they use, and what stands there

_BLOCK = 8  # output voxels a product: few enough for a narrow band of inputs, and for the cache
_NEAR_AND_FAR = slice(None, -1), slice(1, None)
_POINTS = 1 << 14  # interpolated at a time: what each takes fits a core's cache


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


def bounding_box(mask: NDArray[np.bool_]) -> Box:
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


def _apply(data: F32 | Mask, x: F32, y: F32, z: F32) -> F32:
    """Apply a matrix along each axis of an (I, J, K) volume; (len(x), len(y), len(z)), Fortran order."""
    # Fortran order is how NIfTI stores voxels: of the transposed view (K, J, I), which is C-contiguous then,
    # BLAS takes each part below without a copy. Of other volumes a part is copied, never the whole.
    t = data.T
    x_bands, y_bands = _bands(x), _bands(y)
    out = np.empty((len(z), len(y), len(x)), np.float32)
    for rows, span, weights in _bands(z):  # all three axes of a few slices at a time, while they are in cache
        few = np.ascontiguousarray(t[span], np.float32)
        part = (weights @ few.reshape(-1, t[0].size)).reshape(-1, *t.shape[1:])
        out[rows] = _along_columns(x_bands, _along_rows(y_bands, part))
    return out.T


def _diagonal(matrix: F64, shape: tuple[int, ...]) -> bool:
    """Whether the off-axis terms move no voxel of the grid by more than 1 % of a voxel."""
    linear = matrix[:3, :3]
    off = linear - np.diag(np.diag(linear))
    # Not the far corner's move: a rotation about the diagonal that leads there leaves that corner alone.
    return bool((np.abs(off) @ np.asarray(shape, np.float64)).max() < 0.01)


def resample(
    data: F32 | Mask, affine: F64, shape: tuple[int, ...], new_affine: F64, where: Mask | None = None
) -> F32:
    """Resample a volume onto another grid, antialiased; zero outside the field of view.

    data : (I, J, K) float32 or bool with `affine` (4, 4), voxel to world mm.
    shape, new_affine : the grid wanted.  where : `shape` bool, which of its voxels; the others are 0, and
        what of the volume only they need is not looked at.
    Returns `shape` float32, Fortran order.
    """
    to_input = np.linalg.inv(affine) @ new_affine
    if not _diagonal(to_input, shape):
        return _resample_oblique(data, affine, shape, new_affine, where)
    x, y, z = (axis_weights(data.shape[k], shape[k], to_input[k, k], to_input[k, 3]) for k in range(3))
    out = _apply(data, x, y, z)
    if where is not None:
        out[~where] = 0
    return out


def averaged(data: F32, affine: F64, mm: float) -> tuple[F32, F64]:
    """A volume on voxels of about `mm`, and their affine; axes whose voxels are larger already stay.

    data : (I, J, K) float32 with `affine` (4, 4), voxel to world mm.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    i, j, k = (min(n, max(1, round(n * size / mm))) for n, size in zip(data.shape, sizes, strict=True))
    grid = scaled_affine(data.shape, affine, (i, j, k))
    return (data, grid) if (i, j, k) == data.shape else (resample(data, affine, (i, j, k), grid), grid)


def near_box(shape: tuple[int, ...], affine: F64, new_shape: tuple[int, ...], new_affine: F64) -> Mask:
    """`new_shape` bool, the voxels of one grid that a volume on another can reach when it is resampled.

    shape, affine : of the volume.  new_shape, new_affine : of the grid; affines are voxel to world mm.
    """
    wanted = np.linalg.norm(new_affine[:3, :3], axis=0).max()
    reach = np.ceil(np.maximum(1.0, wanted / np.linalg.norm(affine[:3, :3], axis=0))).astype(np.int64) + 1
    x, y, z = (slice(-far, n + far) for far, n in zip(reach.tolist(), shape, strict=True))
    near = np.zeros(new_shape, np.bool_, order="F")
    near[_part_through(np.linalg.inv(new_affine) @ affine, (x, y, z), new_shape)] = True
    return near


def _resample_oblique(
    data: F32 | Mask, affine: F64, shape: tuple[int, ...], new_affine: F64, where: Mask | None
) -> F32:
    """`resample` onto a grid that is turned against the volume's."""
    out = np.zeros(shape, np.float32, order="F")
    flat = out.reshape(-1, shape[2], order="F").T  # a view, (K, I * J)
    for at, column, values in _oblique_values(data, affine, shape, new_affine, where):
        flat[at, column] = values
    return out


def _oblique_values(
    data: F32 | Mask, affine: F64, shape: tuple[int, ...], new_affine: F64, where: Mask | None
) -> Iterator[tuple[Any, Any, F32]]:
    """Low-pass and thin out along the scan's own axes, then interpolate the rest of the way.

    The low-pass has the width of the wanted spacing and is sampled twice as densely, which leaves the
    second, linear step little to blur.

    Yields (slice or slices, place or places in the slice, values) of the voxels that are not 0, some at a
    time: 8 bytes x 3 of coordinates a voxel add up.
    """
    if where is not None and not where.any():
        return
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = float(np.linalg.norm(new_affine[:3, :3], axis=0).min())
    factor = np.maximum(1.0, wanted / spacing)  # low-pass width, in input voxels
    step = np.maximum(1.0, factor / 2)
    thin_shape = tuple(int(np.ceil(n / s)) for n, s in zip(data.shape, step, strict=True))
    to_thin = np.diag([*(1 / step), 1.0]) @ np.linalg.inv(affine) @ new_affine
    padded = tuple(n + 2 for n in thin_shape)  # a margin of zeros, so that the signal is zero outside
    in_padded = to_thin.copy()
    in_padded[:3, 3] += 1
    seen = _part_through(in_padded, bounding_box(where), padded) if where is not None else (slice(None),) * 3
    lowpass = [
        np.pad(_lowpass(data.shape[k], thin_shape[k], step[k], factor[k]), ((1, 1), (0, 0)))[seen[k]]
        for k in range(3)
    ]
    spans = tuple(_span(weights) for weights in lowpass)
    if not all(span.stop > span.start for span in spans):
        return  # all that is wanted lies outside
    thin = _apply(data[spans], *(w[:, span] for w, span in zip(lowpass, spans, strict=True)))
    index = np.indices(shape[1::-1], np.float64)[::-1].reshape(2, -1)  # the first axis runs fastest
    plane = to_thin[:3, :2] @ index + to_thin[:3, 3:] + 1
    last, corner = np.array(padded)[:, None] - 1, np.array([[part.start or 0] for part in seen])
    if where is None:
        for k in range(shape[2]):
            yield k, slice(None), _interpolated(thin, plane + k * to_thin[:3, 2:3], last, corner)
        return
    slices, columns = np.nonzero(where.reshape(-1, shape[2], order="F").T)
    for start in range(0, len(slices), _POINTS):
        at, column = slices[start : start + _POINTS], columns[start : start + _POINTS]
        coords = plane.take(column, axis=1) + at * to_thin[:3, 2:3]
        yield at, column, _interpolated(thin, coords, last, corner)


def more_than_half(soft: F32, affine: F64, shape: tuple[int, ...], new_affine: F64) -> Mask:
    """`resample` of a volume in [0, 1] onto another grid, whether it is more than a half: `shape` bool.

    soft : (I, J, K) float32, smoother than its voxels, with `affine` (4, 4), voxel to world mm.
    Of a finer grid only voxels are interpolated among whose neighbours a half lies.
    """
    to_input = np.linalg.inv(affine) @ new_affine
    finest = np.linalg.norm(affine[:3, :3], axis=0).min()
    if _diagonal(to_input, shape) or np.linalg.norm(new_affine[:3, :3], axis=0).min() > finest:
        return resample(soft, affine, shape, new_affine) > 0.5
    padded = np.pad(soft, 1)
    least, most = padded, padded  # of the eight corners of every cell
    for axis in range(3):
        near, far = (tuple(part if k == axis else slice(None) for k in range(3)) for part in _NEAR_AND_FAR)
        least, most = np.minimum(least[near], least[far]), np.maximum(most[near], most[far])
    kind = np.asfortranarray((most >= 0.5).astype(np.uint8) + (least > 0.5)).ravel(order="F")
    cells = least.shape
    to_input[:3, 3] += 1
    # A cell reaches from its own corner to the next one, which may be several voxels of a fine grid away.
    x, y, z = (slice(part.start, part.stop + 1) for part in bounding_box(most >= 0.5))
    box = _part_through(np.linalg.inv(to_input), (x, y, z), shape)
    found, between = (np.zeros(shape, np.bool_, order="F") for _ in range(2))
    i, j, k = (np.arange(part.start, part.stop) for part in box)
    step = to_input[:3, :3].astype(np.float32)
    plane = step[:, :1, None] * i[:, None].astype(np.float32) + step[:, 1:2, None] * j.astype(np.float32)
    plane += to_input[:3, 3].astype(np.float32)[:, None, None]  # (3, I, J)
    for at in k:
        x, y, z = (
            np.clip(row + along * np.float32(at), 0, n - 1).astype(np.int32)
            for row, along, n in zip(plane, step[:, 2], cells, strict=True)
        )
        here = kind.take(x + cells[0] * (y + cells[1] * z))
        np.equal(here, 2, out=found[box[0], box[1], at])
        np.equal(here, 1, out=between[box[0], box[1], at])
    flat = found.reshape(-1, shape[2], order="F").T  # a view, (K, I * J)
    for one, column, values in _oblique_values(soft, affine, shape, new_affine, between):
        flat[one, column] = values > 0.5
    return found


def _part_through(matrix: NDArray[Any], box: Box, shape: tuple[int, ...]) -> Box:
    """The part of a grid of `shape` that `matrix` leads to from a box of another, and a voxel more."""
    ends = [(part.start, part.stop - 1) for part in box]
    corners = np.array([(x, y, z) for x in ends[0] for y in ends[1] for z in ends[2]], np.float64)
    at = corners @ matrix[:3, :3].T + matrix[:3, 3]
    low = np.floor(at.min(axis=0)).astype(np.int64) - 1
    high = np.ceil(at.max(axis=0)).astype(np.int64) + 2
    i, j, k = (
        slice(max(0, min(start, n - 2)), min(n, max(2, stop)))
        for start, stop, n in zip(low.tolist(), high.tolist(), shape, strict=True)
    )
    return i, j, k


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
    return _interpolated(volume, coords, last, np.zeros((3, 1), np.intp))


def _interpolated(part: F32, coords: F64, last: NDArray[Any], corner: NDArray[Any]) -> F32:
    """`trilinear` in a volume that ends at the voxel `last` (3, 1), by its part that begins at `corner`."""
    inside = np.maximum(coords, 0)
    np.minimum(inside, last, out=inside)
    low = np.floor(inside)
    np.minimum(low, np.maximum(last - 1, 0), out=low)
    x, y, z = np.subtract(inside, low, out=inside).astype(np.float32)
    flat = np.asfortranarray(part).ravel(order="F")
    # An axis of one voxel has no far corner.
    row, slab = part.shape[0], part.shape[0] * part.shape[1]
    low -= corner
    first = (low[0] + row * low[1] + slab * low[2]).astype(np.intp)
    i, j, k = (step if n else 0 for step, n in zip((1, row, slab), last[:, 0], strict=True))
    near_x, near_y, near_z = 1 - x, 1 - y, 1 - z
    edges = [(near_x * near_y, 0), (x * near_y, i), (near_x * y, j), (x * y, i + j)]
    out = np.zeros(coords.shape[1], np.float32)
    for far, at in ((near_z, 0), (z, k)):
        for edge, beside in edges:
            term = edge * far
            term *= flat[at + beside :].take(first)
            out += term
    return out


def upsampled_slabs(
    volumes: list[F32],
    affine: F64,
    shape: tuple[int, ...],
    new_affine: F64,
    box: Box = (slice(None),) * 3,
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
    del index
    parts = [slice(start, start + _POINTS) for start in range(0, coords.shape[1], _POINTS)]
    turned = [np.concatenate([trilinear(v, coords[:, part]) for part in parts]) for v in volumes]
    return [v.reshape(turned_shape, order="F") for v in turned], np.linalg.inv(turned_affine) @ new_affine
