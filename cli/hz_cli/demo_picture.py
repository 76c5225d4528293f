"""The demo's picture: one axial slice, three scanners side by side, raw above and harmonized below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

WHITE_POINT = 1.6  # times the brain's mean: above white matter, below the brightest noise
GAP = 8

# 5 x 7 capitals, a row a number; just the letters that the labels need.
_FONT = {
    "A": (14, 17, 17, 31, 17, 17, 17),
    "B": (30, 17, 17, 30, 17, 17, 30),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "D": (30, 17, 17, 17, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "H": (17, 17, 17, 31, 17, 17, 17),
    "I": (14, 4, 4, 4, 4, 4, 14),
    "M": (17, 27, 21, 21, 17, 17, 17),
    "N": (17, 25, 21, 19, 17, 17, 17),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30),
    "W": (17, 17, 17, 21, 21, 27, 17),
    "Z": (31, 1, 2, 4, 8, 16, 31),
    " ": (0,) * 7,
    "-": (0, 0, 0, 31, 0, 0, 0),
}


def before_after(
    names: Sequence[str], raw: Sequence[F32], harmonized: Sequence[F32], brain: Mask, zoom: int = 2
) -> bytes:
    """PNG bytes, a column a scanner, raw above harmonized.

    raw, harmonized : (I, J, K) each, RAS, on the grid of `brain` (I, J, K) bool. Every slice is shown with
    black at 0 and white at 1.6 times its own brain mean, so that only shape and contrast can differ.
    zoom : screen pixels a voxel.
    """
    from hz_runtime.report.png import encode_png

    level = int(np.flatnonzero(brain.any(axis=(0, 1))).mean()) + 8  # through the ventricles
    columns = []
    for name, before, after in zip(names, raw, harmonized, strict=True):
        tiles = [
            labelled(tile(v, brain, level, zoom), f"{name.replace('-', ' ')} {what}".upper())
            for v, what in ((before, "raw"), (after, "harmonized"))
        ]
        columns.append(np.vstack([tiles[0], np.zeros((GAP, tiles[0].shape[1]), np.uint8), tiles[1]]))
    spaced = [np.pad(c, ((GAP, GAP), (GAP // 2, GAP // 2))) for c in columns]
    return encode_png(np.ascontiguousarray(np.hstack(spaced)))


def tile(volume: F32, brain: Mask, level: int, zoom: int) -> U8:
    """One axial slice (h, w) uint8: front up, the subject's right on the right, cropped to the brain."""
    rows, columns = (np.flatnonzero(brain.any(axis=axes)) for axes in ((0, 2), (1, 2)))
    cut = volume[max(columns[0] - 3, 0) : columns[-1] + 4, max(rows[0] - 3, 0) : rows[-1] + 4, level]
    white = WHITE_POINT * float(volume[brain].mean(dtype=np.float64))
    grey = np.clip(cut / max(white, 1e-9), 0, 1) * 255
    upright = grey.astype(np.uint8).T[::-1]
    return np.kron(upright, np.ones((zoom, zoom), np.uint8))


def labelled(picture: U8, text: str, size: int = 2) -> U8:
    """The picture with a line of text above it; letters the font lacks are left blank."""
    line = np.zeros((7, 6 * len(text)), np.uint8)
    for position, letter in enumerate(text):
        for row, bits in enumerate(_FONT.get(letter, _FONT[" "])):
            for column in range(5):
                line[row, 6 * position + column] = 230 * (bits >> (4 - column) & 1)
    big = np.kron(line, np.ones((size, size), np.uint8))[:, : picture.shape[1]]
    header = np.zeros((big.shape[0] + 3 * size, picture.shape[1]), np.uint8)
    left = (picture.shape[1] - big.shape[1]) // 2
    header[size : size + big.shape[0], left : left + big.shape[1]] = big
    return np.vstack([header, picture])
