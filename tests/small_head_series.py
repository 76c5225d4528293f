"""A series of a head that every gate lets pass: the made-up head of `small_heads` as axial DICOM slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import small_dicom
from small_heads import made_head

LPS = np.diag([-1.0, -1.0, 1.0])
SLICES = 64
_LOWEST, _STEP = -92.0, 2.9  # mm: from under the cerebellum to over the crown


def write_head_series(folder: Path, name: str = "IM{:04}.dcm", seed: int = 0) -> list[Path]:
    """64 slices of 100 x 124 pixels of 2 mm, 2.9 mm thick, with the header of `small_dicom`; the files."""
    data, _, affine = made_head(seed=seed)
    columns, rows, _ = data.shape
    written = []
    for index in range(SLICES):
        depth = (_LOWEST + _STEP * index - affine[2, 3]) / affine[2, 2]
        below, share = int(depth), depth - int(depth)
        plane = data[:, :, below] * (1 - share) + data[:, :, below + 1] * share
        position = LPS @ (affine @ [0, 0, depth, 1])[:3]
        head = small_dicom.header(
            index,
            Rows=rows, Columns=columns, PixelSpacing=["2", "2"], SliceThickness=str(_STEP),
            ImagePositionPatient=[f"{x:g}" for x in position],
            ImageOrientationPatient=["-1", "0", "0", "0", "-1", "0"],
        )  # fmt: skip
        head.PixelData = np.clip(plane.T, 0, 4095).astype("<u2").tobytes()
        head["PixelData"].VR = "OW"
        written.append(small_dicom.save(head, folder / name.format(index)))
    return written
