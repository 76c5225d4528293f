"""Binary morphology of (I, J, K) masks in numpy: what a brain mask needs of scipy.ndimage.

Neighbours are the six that share a face, unless told otherwise; nothing lies outside the array.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Runs = NDArray[np.int32]  # numbers of runs of voxels along the first axis


def dilated(mask: Mask, steps: int = 1, within: Mask | None = None) -> Mask:
    """Every voxel within `steps` face-to-face steps of the mask; with `within`, along voxels of that only."""
    for _ in range(steps):
        grown = mask.copy()
        for axis in range(mask.ndim):
            near, far = _neighbours(axis, mask.ndim)
            grown[near] |= mask[far]
            grown[far] |= mask[near]
        mask = grown if within is None else grown & within
    return mask


def eroded(mask: Mask, steps: int = 1) -> Mask:
    """Every voxel further than `steps` from all that is outside; the array's edge is no outside."""
    return ~dilated(~mask, steps)


def reached(seed: Mask, within: Mask) -> Mask:
    """The part of `within` that is connected with the seed."""
    mask, count = seed & within, -1
    while count != (count := int(np.count_nonzero(mask))):
        mask = dilated(mask, 4, within)
    return mask


def filled(mask: Mask) -> Mask:
    """The mask and every hole in it that no path leads out of."""
    rim = np.zeros_like(mask)
    for axis in range(mask.ndim):
        for end in (0, -1):
            rim[(slice(None),) * axis + (end,)] = True
    return ~reached(rim, ~mask)


def _neighbours(axis: int, ndim: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    before = (slice(None),) * axis
    after = (slice(None),) * (ndim - axis - 1)
    return (*before, slice(None, -1), *after), (*before, slice(1, None), *after)


def largest(mask: Mask) -> Mask:
    """The largest part of an (I, J, K) mask whose voxels touch by a face, an edge or a corner; none for none.

    Runs of voxels along the first axis are numbered, and numbers that touch are joined until none changes.
    """
    padded = np.pad(np.asfortranarray(mask), ((1, 0), (1, 1), (1, 1)))
    begins = padded[1:] & ~padded[:-1]  # (I, J + 2, K + 2)
    run = np.cumsum(begins.ravel(order="F"), dtype=np.int32).reshape(begins.shape, order="F")
    run = np.where(padded[1:], run, 0)
    count = int(run.max(initial=0))
    if not count:
        return mask.copy()
    of_run = _joined(count, *_touching(run, begins))
    sizes = np.bincount(of_run[run[run > 0]], minlength=count + 1)
    keep = of_run == sizes.argmax()
    keep[0] = False
    part: Mask = keep[run][:, 1:-1, 1:-1]
    return part


def _touching(run: Runs, begins: Mask) -> tuple[Runs, Runs]:
    """Numbers of runs in neighbouring rows that touch, as two arrays of pairs; rows lie along the first axis.

    Two runs that touch do so where one of them begins, so that no other voxel needs a look.
    """
    rows, columns = run.shape[1:]
    pairs = []
    for j, k in ((1, 0), (-1, 1), (0, 1), (1, 1)):
        there = (slice(1 + j, rows - 1 + j), slice(1 + k, columns - 1 + k))
        for step in (-1, 0, 1):
            one = (slice(max(step, 0), run.shape[0] + min(step, 0)), slice(1, -1), slice(1, -1))
            other = (slice(max(-step, 0), run.shape[0] + min(-step, 0)), *there)
            met = (begins[one] | begins[other]) & (run[one] > 0) & (run[other] > 0)
            pairs.append((run[one][met], run[other][met]))
    ones, others = zip(*pairs, strict=True)
    return np.concatenate(ones), np.concatenate(others)


def _joined(count: int, one: Runs, other: Runs) -> NDArray[np.intp]:
    """The smallest number that each of 0..count is connected with through the pairs."""
    label = np.arange(count + 1)
    while True:
        low, high = np.minimum(label[one], label[other]), np.maximum(label[one], label[other])
        if np.array_equal(low, high):
            return label
        np.minimum.at(label, high, low)
        while not np.array_equal(label, label[label]):
            label = label[label]
