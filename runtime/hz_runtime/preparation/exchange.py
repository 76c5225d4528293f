"""Volumes as plain NIfTI files that another program reads and writes, in a folder that goes soon after.

Nothing of them is checked as a scan's file is: both sides are known.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import HzError
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.nifti_header import encode_header

HEAD_BYTES = 348  # of a NIfTI-1 header
FLOAT32 = struct.pack("<h", 16)  # its NIfTI code
AGAIN = "Run the same command again, with room on the disk for temporary files."
F32 = NDArray[np.float32]


def hand_over(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write an (I, J, K) float32 or uint8 array with `affine`, (4, 4) voxel to world mm, as it lies."""
    with path.open("wb") as file:
        file.write(encode_header(Geometry.from_affine(data.shape, affine), data.dtype, 1.0))
        file.write(np.asfortranarray(data).T.data)


def take_back(path: Path, shape: tuple[int, ...]) -> F32:
    """The array of `shape`, float32, that a program wrote on the voxels that it was given.

    Raises HzError for a file that holds something else, or less.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    stored = path.stat().st_size
    if len(head) < HEAD_BYTES or struct.unpack_from("<3h", head, 42) != shape or head[70:72] != FLOAT32:
        raise HzError(f"{path.name} came back as another volume than was handed over.", AGAIN)
    offset = int(struct.unpack_from("<f", head, 108)[0])
    if stored != offset + 4 * math.prod(shape):
        raise HzError(f"{path.name} came back with {stored} bytes of {offset + 4 * math.prod(shape)}.", AGAIN)
    return np.fromfile(path, "<f4", offset=offset).reshape(shape, order="F")
