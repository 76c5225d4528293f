"""Small copies of a scan: for looking through it in a page, and for comparing it with others."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import HzError
from hz_runtime.io.atomic import gzipped
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.nifti_header import HEAD_BYTES, ReadLimits, encode_header, parse_header
from hz_runtime.model_space.foreground import BLOCKS

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

VOXEL_MM = 2.0
MOST_VOXELS = 2**20
LEVELS = 127  # a finer step cannot be seen, and noise does not compress
_CAL_MAX = 124  # offset in a NIfTI-1 header of cal_max, and cal_min behind it


def thumbnail(
    data: F32, affine: F64, box: list[tuple[int, int]], low: float, high: float, window: tuple[float, float]
) -> bytes:
    """A gzipped NIfTI-1 of the part of a volume within `box`, averaged to voxels of about 2 mm.

    data : (I, J, K) RAS.  affine : (4, 4) mm.  box : first and past-the-last voxel by axis.
    low, high : values that become 0 and 1.  window : of those, what to show as black and as white (the
        header's cal_min and cal_max).
    Values are uint8 with a slope of 1/127: 0 to 1. The same volume gives the same bytes on one machine.
    """
    spacing = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    steps = [_step(float(mm), last - first) for mm, (first, last) in zip(spacing, box, strict=True)]
    sizes = [(last - first) // step for step, (first, last) in zip(steps, box, strict=True)]
    while np.prod(sizes) > MOST_VOXELS:
        thickest = int(np.argmax(sizes))
        steps[thickest] *= 2
        sizes[thickest] = max(1, sizes[thickest] // 2)
    cut = data[tuple(slice(a, a + n * s) for (a, _), n, s in zip(box, sizes, steps, strict=True))]
    scale = 1.0 / (high - low) if high > low else 0.0
    scaled = np.clip((np.nan_to_num(_averaged(cut, steps)) - low) * scale, 0.0, 1.0)

    corner = [a + (s - 1) / 2 for (a, _), s in zip(box, steps, strict=True)]
    geometry = Geometry.from_affine(tuple(sizes), affine @ _moved(corner) @ np.diag([*steps, 1.0]), code=1)
    header = encode_header(geometry, np.uint8, 1 / LEVELS, window)
    voxels = np.rint(scaled * LEVELS).astype(np.uint8)
    return gzipped([header, voxels.tobytes("F")])


def axial_slice(
    volume: bytes, through: tuple[float, float, float]
) -> tuple[F32, tuple[float, float], tuple[float, float]]:
    """(values (I, J), voxel sizes of its axes in mm, `thumbnail`'s window) of a slice through a place.

    volume : of `thumbnail`.  through : world mm; where it lies outside, the nearest slice.
    Raises HzError where it is no such volume.
    """
    try:
        # No more than was ever written: the file lies in a user's folder.
        content = zlib.decompressobj(31).decompress(volume, MOST_VOXELS + HEAD_BYTES)
    except zlib.error as error:
        raise HzError("Not a small volume that hz wrote, or a damaged one.") from error
    header = parse_header(content[:HEAD_BYTES], "the small volume", ReadLimits())
    shape, affine = header.geometry.shape, header.geometry.affine
    if header.dtype != np.uint8 or len(content) < header.offset + header.voxels:
        raise HzError("Not a small volume that hz wrote, or a cut one.")
    voxels = np.frombuffer(content, np.uint8, header.voxels, header.offset).reshape(shape, order="F")
    place = np.linalg.inv(affine) @ np.array([*through, 1.0])
    cut = voxels[:, :, int(np.clip(round(float(place[2])), 0, shape[2] - 1))]
    white, black = struct.unpack_from("<2f", content, _CAL_MAX)
    mm = np.linalg.norm(affine[:3, :2], axis=0)
    scaled: F32 = cut.astype(np.float32) * np.float32(1 / LEVELS)
    return scaled, (float(mm[0]), float(mm[1])), (black, white)


def check(volume: bytes, means: bytes) -> None:
    """Raise ValueError where these are not what the functions above give. The volume may be empty."""
    if volume and (volume[:2] != b"\x1f\x8b" or len(volume) > MOST_VOXELS + 2**16):
        raise ValueError("not a small volume")
    if len(means) != BLOCKS**3:
        raise ValueError("not block means")


def _step(mm: float, size: int) -> int:
    """Voxels to average along an axis, at most all of them."""
    return int(np.clip(round(VOXEL_MM / max(mm, 1e-6)), 1, max(1, size)))


def _averaged(cut: F32, steps: list[int]) -> F32:
    """Means of blocks of `steps` voxels; the sizes are multiples of them.

    Sums of strided views, the slowest axis first, so that most of the voxels are read in their own order: a
    mean over a reshaped axis takes four times as long.
    """
    for axis, step in reversed(list(enumerate(steps))):
        if step > 1:
            total = np.array(_every(cut, axis, 0, step))
            for offset in range(1, step):
                total += _every(cut, axis, offset, step)
            cut = np.asarray(total * np.float32(1 / step), np.float32)
    return cut


def _every(cut: F32, axis: int, offset: int, step: int) -> F32:
    index = tuple(slice(offset, None, step) if k == axis else slice(None) for k in range(cut.ndim))
    return cut[index]


def _moved(voxels: list[float]) -> F64:
    moved = np.eye(4)
    moved[:3, 3] = voxels
    return moved
