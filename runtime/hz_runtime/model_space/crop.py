"""A grid that is a window of a template's: where it lies, what of a volume is in it and what outside.

Voxels stay as they are: nothing is resampled here. What lies beyond the template's grid is air.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.resample import bounding_box

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Shape = tuple[int, int, int]

FOLLOWS = ("", "edges", "middle")


def first_voxel(brain: Mask, first: Sequence[int], shape: Shape, follows: str) -> Shape:
    """Where in a volume the window of `shape` starts, which may be before its first voxel.

    brain : (D, H, W) bool, the volume's.  first : where it starts by itself.
    follows : "" for there; "edges" for the nearest place to it that holds all of the brain, along each axis
        that can (IGUANe's indices_crop); "middle" for the place whose middle is that of the brain's box (what
        MONAI's CropForeground, SpatialPad and CenterSpatialCrop come to, one after another).
    """
    start = [int(n) for n in first]
    if follows:
        for axis, (span, size) in enumerate(zip(bounding_box(brain), shape, strict=True)):
            length = span.stop - span.start
            if follows == "middle":
                start[axis] = span.start + (
                    length // 2 - size // 2 if length > size else -((size - length) // 2)
                )
            elif length <= size:
                start[axis] = min(max(start[axis], span.stop - size), span.start)
    return start[0], start[1], start[2]


def cut(volume: F32, first: Shape, shape: Shape) -> F32:
    """The window of `shape` from voxel `first` on, contiguous; 0 where it leaves the volume (D, H, W)."""
    out = np.zeros(shape, np.float32)
    source, target = _overlap(volume.shape, first, shape)
    out[target] = volume[source]
    return out


def share_kept(brain: Mask, first: Shape, shape: Shape) -> float:
    """Share of a mask's True voxels, (D, H, W), that the window holds."""
    source, _ = _overlap(brain.shape, first, shape)
    return float(np.count_nonzero(brain[source])) / max(1, int(np.count_nonzero(brain)))


def shifted(affine: F64, first: Sequence[int]) -> F64:
    """The affine (4, 4) of the window that starts at voxel `first` of a grid."""
    result = np.array(affine, np.float64)
    result[:3, 3] += affine[:3, :3] @ np.asarray(first, np.float64)
    return result


def _overlap(
    size: tuple[int, ...], first: Shape, shape: Shape
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """(where in the volume, where in the window) the two share voxels."""
    begin = [max(0, f) for f in first]
    end = [max(b, min(n, f + m)) for n, b, f, m in zip(size, begin, first, shape, strict=True)]
    source = tuple(slice(b, e) for b, e in zip(begin, end, strict=True))
    target = tuple(slice(b - f, e - f) for b, e, f in zip(begin, end, first, strict=True))
    return source, target
