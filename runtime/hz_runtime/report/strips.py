"""Slices as pixels: turned for the screen, in gray or in the difference's colours, three side by side.

Sides are neurological: in coronal and axial slices the subject's right is on the picture's right,
and the letters R, L, A, P are drawn into the pixels so that they survive a copied picture.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

DIFFERENCE_LIMIT = 0.5
INK = 254  # index of the letters in the difference's palette
_OUTSIDE, _ZERO = 0, 127

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

_GLYPHS = {
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "A": ("01110", "10001", "10001", "11111", "10001", "10001", "10001"),
    "P": ("11110", "10001", "10001", "11110", "10000", "10000", "10000"),
}
_MARKS = (("A", "P"), ("L", "R"), ("L", "R"))
_GAP = 14  # between slices, so that one's P and the next one's L stay apart
_GUTTER = 10  # columns left and right of a slice, for its letter


def _diverging_palette() -> U8:
    """Blue - white - red for indices 1..253; 0 is outside the brain, 254 is the letters."""
    t = np.clip((np.arange(256) - _ZERO) / 126.0, -1.0, 1.0)[:, None]
    white, blue, red = (np.array(c, dtype=np.float64) for c in ((247, 247, 247), (5, 70, 160), (170, 10, 30)))
    # A power below one shows small changes, where nearly all of them are; the legend shares it.
    depth = np.abs(t) ** 0.7
    colours = np.where(t < 0, white + depth * (blue - white), white + depth * (red - white))
    colours[_OUTSIDE] = 0
    colours[INK] = colours[255] = 200
    return np.rint(colours).astype(np.uint8)


_PALETTE = _diverging_palette()


def difference_palette() -> U8:
    """(256, 3) colours by index: 0 outside the brain, 1 to 253 from -0.5 to +0.5."""
    return _PALETTE.copy()


def difference_colours(count: int) -> list[str]:
    """`count` CSS colours from -0.5 to +0.5: the legend of the difference strip."""
    at = np.rint(np.linspace(1, 253, count)).astype(int)
    return ["#" + bytes(_PALETTE[i]).hex() for i in at]


def gray(cut: F32, black: float, white: float) -> U8:
    """(h, w) values as levels of gray, from `black` to `white`."""
    # 7 bits: a step of 2 of 256 cannot be seen in a scan, and the file is a fifth smaller.
    level = np.clip((cut - black) / (white - black), 0.0, 1.0) * 127.0
    return np.asarray(np.rint(level) * 2, dtype=np.uint8)


def diverging(change: F32, cover: F32) -> U8:
    """(h, w) differences as indices of the palette.  cover : how far a pixel is brain, 0 to 1."""
    index = np.rint(_ZERO + np.clip(change / DIFFERENCE_LIMIT, -1.0, 1.0) * 126.0)
    return np.where(cover >= 0.5, index, _OUTSIDE).astype(np.uint8)


def strip(slices: list[U8], ink: int) -> U8:
    """A sagittal, a coronal and an axial slice side by side, lettered in the level or index `ink`."""
    height = max(cut.shape[0] for cut in slices)
    parts = []
    for cut, (left, right) in zip(slices, _MARKS, strict=True):
        tile = np.zeros((height, cut.shape[1] + 2 * _GUTTER), dtype=np.uint8)
        top = (height - cut.shape[0]) // 2
        tile[top : top + cut.shape[0], _GUTTER:-_GUTTER] = cut
        _letter(tile, left, 2, ink)
        _letter(tile, right, tile.shape[1] - 7, ink)
        parts += [tile, np.zeros((height, _GAP), dtype=np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def _letter(tile: U8, letter: str, column: int, ink: int) -> None:
    glyph = np.array([[c == "1" for c in row] for row in _GLYPHS[letter]])
    row = max(0, (tile.shape[0] - 7) // 2)
    target = tile[row : row + 7, column : column + 5]
    target[glyph[: target.shape[0], : target.shape[1]]] = ink


# Size and side


def resize(cut: F32, mm: list[float], pixel: float) -> F32:
    """(h, w) with voxels of mm[0] x mm[1] -> square pixels of `pixel` mm, antialiased, linear."""
    return _along_rows(_along_rows(cut, mm[0], pixel).T, mm[1], pixel).T


def _along_rows(cut: F32, mm: float, pixel: float) -> F32:
    """Resample axis 0 with a triangle kernel, as wide as a pixel where pixels are the larger.

    A sum over the few taps, not a matrix product: BLAS would start its threads for these small
    slices and fight the network for the cores.
    """
    size = cut.shape[0]
    count = max(1, round(size * mm / pixel))
    width = max(1.0, size / count)
    centres = (np.arange(count) + 0.5) * size / count - 0.5
    taps = np.floor(centres)[:, None] + np.arange(1 - math.ceil(width), 1 + math.ceil(width))
    weights = np.maximum(0.0, 1.0 - np.abs(taps - centres[:, None]) / width)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    index = np.clip(taps, 0, size - 1).astype(np.intp)
    out = np.zeros((count, cut.shape[1]), dtype=np.float32)
    for k in range(index.shape[1]):
        out += weights[:, k, None] * cut[index[:, k]]
    return out


def upright(cut: F32, axis: int) -> F32:
    """Turn a RAS slice for the screen: up is superior (anterior in axial), right is the right.

    Sagittal slices face left, as they are hung in radiology.
    """
    turned = cut.T[::-1]
    return turned[:, ::-1] if axis == 0 else turned
