"""The picture of one scan: mid-slices before and after, their difference, and two histograms.

Nothing but a base install is needed to draw. A `Figure` is small (half a megabyte as JSON), deterministic
on one machine, and holds finished PNG strips: sagittal | coronal | axial, side by side at one scale,
superior (or anterior) up; and small copies of both volumes to look through.

Sides are neurological: in coronal and axial slices the subject's right is on the picture's right,
and the letters R, L, A, P are drawn into the pixels so that they survive a copied picture.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import GridMismatch, HzError
from hz_runtime.model_space.foreground import blocks
from hz_runtime.report.png import encode_png, png_size
from hz_runtime.report.thumbnail import check as check_small
from hz_runtime.report.thumbnail import thumbnail

PLANES = ("sagittal", "coronal", "axial")
BINS = 64
DIFFERENCE_LIMIT = 0.5
MAX_PIXELS = 155
"""Longest side of one slice: 500 scans must still make a page that a browser opens."""

_MARGIN_MM = 5.0
_SAMPLES = 2**18
_FORMAT = "hz-figure"
_VERSION = 2
_MAX_BYTES = 4 * 2**20
_OUTSIDE, _ZERO, _INK = 0, 127, 254
_SMALL = ("small_before", "small_after", "blocks_before", "blocks_after")

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class ScanLike(Protocol):
    """What is drawn of a `Volume`: a RAS float32 array (I, J, K) and its 4x4 affine in mm."""

    @property
    def data(self) -> F32: ...
    @property
    def affine(self) -> F64: ...


class PreparedLike(Protocol):
    """What is drawn of a `Prepared`: the 64^3 grid and the min-max limits in native units."""

    @property
    def grid(self) -> F32: ...
    @property
    def grid_affine(self) -> F64: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Figure:
    """The pictures and histograms of one scan.

    before, after, difference : PNG bytes, one strip of three slices each, all of one size.
    histogram_before, histogram_after : 64 counts of brain voxels over [0, 1] (raw values are
        min-max scaled as the network saw them; larger scans are counted on a regular subsample).
    centre_mm : world coordinates (mm) that all three slices pass through.
    window : raw intensities drawn as black and as white (1st and 99.5th percentile of the brain).
    mean_change : mean |after - before| over the counted brain voxels, in [0, 1] units.
    space : "native" (full resolution) or "model" (the network's grid).
    small_before, small_after : gzipped NIfTI at about 2 mm, both scaled 0 to 1, see `thumbnail`; empty
        where they were left out.
    blocks_before, blocks_after : 8 x 8 x 8 block means of the network's grid, see `thumbnail.blocks`.
    """

    before: bytes
    after: bytes
    difference: bytes
    histogram_before: tuple[int, ...]
    histogram_after: tuple[int, ...]
    centre_mm: tuple[float, float, float]
    window: tuple[float, float]
    mean_change: float
    space: str
    small_before: bytes
    small_after: bytes
    blocks_before: bytes
    blocks_after: bytes

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the strips in pixels."""
        return png_size(self.before)

    def to_bytes(self) -> bytes:
        """JSON with sorted keys and base64 PNGs; the same figure gives the same bytes."""
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "before": base64.b64encode(self.before).decode(),
            "after": base64.b64encode(self.after).decode(),
            "difference": base64.b64encode(self.difference).decode(),
            "histogram_before": self.histogram_before,
            "histogram_after": self.histogram_after,
            "centre_mm": self.centre_mm,
            "window": self.window,
            "mean_change": self.mean_change,
            "space": self.space,
            **{name: base64.b64encode(getattr(self, name)).decode() for name in _SMALL},
        }
        return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Figure:
        """Read what `to_bytes` wrote. Raises HzError when it is anything else."""
        try:
            if len(data) > _MAX_BYTES:
                raise ValueError("too large")
            return _from_record(json.loads(data))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError, binascii.Error) as error:
            raise HzError(
                f"Not a figure that hz wrote, or a damaged one ({error}).",
                "Delete it and run again with --overwrite.",
            ) from error


def figure_data(
    volume: ScanLike, prepared: PreparedLike, harmonized_native: F32 | None, harmonized_grid: F32
) -> Figure:
    """Draw one scan.

    volume : the scan, RAS. prepared : what the network was given.
    harmonized_native : (I, J, K) float32 in [0, 1] on the scan's grid, zero outside the brain; or
        None, and then both sides are drawn on the network's grid.
    harmonized_grid : (64, 64, 64) float32 in [0, 1].
    Takes slices, a strided subsample and 2 mm averages only: no copy of the volume is made.
    Raises GridMismatch when the two arrays to compare differ in shape.
    """
    if harmonized_native is not None:
        raw, after, affine, space = volume.data, harmonized_native, volume.affine, "native"
        lo, hi = float(prepared.low), float(prepared.high)
    else:
        raw, after, affine, space = prepared.grid, harmonized_grid, prepared.grid_affine, "model"
        lo, hi = 0.0, 1.0
    if raw.shape != after.shape or raw.ndim != 3:
        raise GridMismatch(f"The scan is {raw.shape} and its harmonized copy {after.shape}: cannot compare.")
    scale = 1.0 / (hi - lo) if math.isfinite(hi - lo) and hi > lo else 0.0

    step = max(1, math.ceil((raw.size / _SAMPLES) ** (1 / 3)))
    coarse = (slice(None, None, step),) * 3
    few_raw, few_after = _finite(raw[coarse]), _finite(after[coarse])
    brain = _brain(few_raw, few_after, lo, scale, space)
    inside_raw, inside_after = few_raw[brain], few_after[brain]
    scaled = np.clip((inside_raw - lo) * scale, 0.0, 1.0)
    black, white = _window(inside_raw)

    spacing = np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))
    centre, box = _locate(brain, step, raw.shape, spacing)
    pixel = max(float((b - a) * s) for (a, b), s in zip(box, spacing, strict=True)) / MAX_PIXELS

    rows: tuple[list[U8], list[U8], list[U8]] = ([], [], [])
    for axis in range(3):
        cut_raw = _slice(raw, axis, centre, box)
        cut_after = _slice(after, axis, centre, box)
        inside = _brain(cut_raw, cut_after, lo, scale, space)
        change = cut_after - np.clip((cut_raw - lo) * scale, 0.0, 1.0)
        mm = [float(spacing[k]) for k in range(3) if k != axis]

        def show(cut: F32, mm: list[float] = mm, axis: int = axis) -> F32:
            return _upright(_resize(cut, mm, pixel), axis)

        rows[0].append(_gray(show(cut_raw), black, white))
        rows[1].append(_gray(show(cut_after), 0.0, 1.0))
        rows[2].append(
            _diverging(show(np.where(inside, change, np.float32(0))), show(inside.astype(np.float32)))
        )

    shown = ((black - lo) * scale, (white - lo) * scale) if scale else (0.0, 1.0)
    world = np.asarray(affine, dtype=np.float64) @ np.array([*centre, 1.0])
    return Figure(
        before=encode_png(_strip(rows[0], ink=255)),
        after=encode_png(_strip(rows[1], ink=255)),
        difference=encode_png(_strip(rows[2], ink=_INK), _PALETTE),
        histogram_before=histogram(scaled),
        histogram_after=histogram(inside_after),
        centre_mm=(round(float(world[0]), 1), round(float(world[1]), 1), round(float(world[2]), 1)),
        window=(float(black), float(white)),
        mean_change=round(float(np.abs(inside_after - scaled).mean()), 5) if scaled.size else 0.0,
        space=space,
        small_before=thumbnail(raw, affine, box, lo, hi, shown),
        small_after=thumbnail(after, affine, box, 0.0, 1.0, (0.0, 1.0)),
        blocks_before=blocks(prepared.grid),
        blocks_after=blocks(harmonized_grid),
    )


def histogram(values: F32) -> tuple[int, ...]:
    """Counts of `values` in 64 equal bins over [0, 1]; values outside go to the outermost bins."""
    index = np.clip(np.floor(values.ravel() * BINS), 0, BINS - 1).astype(np.int64)
    return tuple(int(count) for count in np.bincount(index, minlength=BINS))


# Finding and cutting the brain


def _finite(cut: F32) -> F32:
    # A network can answer NaN; the picture must show the rest.
    return np.where(np.isfinite(cut), cut, 0).astype(np.float32, copy=False)


def _brain(raw: F32, after: F32, lo: float, scale: float, space: str) -> NDArray[np.bool_]:
    """Voxels to compare. A native output is zero outside the brain; a network's grid need not be."""
    inside: NDArray[np.bool_] = after > 0 if space == "native" else (raw - lo) * scale > 0.02
    return inside


def _window(inside: F32) -> tuple[float, float]:
    if inside.size == 0:
        return 0.0, 1.0
    black, white = (float(v) for v in np.percentile(inside, [1.0, 99.5]))
    return (black, white) if white > black else (black, black + 1.0)


def _locate(
    brain: NDArray[np.bool_], step: int, shape: tuple[int, ...], spacing: F64
) -> tuple[list[int], list[tuple[int, int]]]:
    """Centre voxel and bounding box (with a margin) of the brain, in full-resolution voxels."""
    centre, box = [], []
    for axis in range(3):
        profile = brain.sum(axis=tuple(k for k in range(3) if k != axis))
        # Specks outside the brain must not stretch the box: 1 % of the fullest plane is the floor.
        planes = np.flatnonzero(profile > 0.01 * profile.max()) if profile.any() else np.arange(profile.size)
        first, last = int(planes[0]) * step, (int(planes[-1]) + 1) * step
        margin = max(1, round(_MARGIN_MM / max(float(spacing[axis]), 1e-6)))
        box.append((max(0, first - margin), min(shape[axis], last + margin)))
        weight = profile if profile.any() else np.ones_like(profile)
        middle = float((np.arange(profile.size) * weight).sum() / weight.sum()) * step
        centre.append(min(shape[axis] - 1, round(middle)))
    return centre, box


def _slice(data: F32, axis: int, centre: list[int], box: list[tuple[int, int]]) -> F32:
    at: list[int | slice] = [slice(a, b) for a, b in box]
    at[axis] = centre[axis]
    return _finite(data[tuple(at)])


def _resize(cut: F32, mm: list[float], pixel: float) -> F32:
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


def _upright(cut: F32, axis: int) -> F32:
    """Turn a RAS slice for the screen: up is superior (anterior in axial), right is the right.

    Sagittal slices face left, as they are hung in radiology.
    """
    turned = cut.T[::-1]
    return turned[:, ::-1] if axis == 0 else turned


# Drawing

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
    colours[_INK] = colours[255] = 200
    return np.rint(colours).astype(np.uint8)


_PALETTE = _diverging_palette()


def difference_palette() -> U8:
    """(256, 3) colours by index: 0 outside the brain, 1 to 253 from -0.5 to +0.5."""
    return _PALETTE.copy()


def difference_colours(count: int) -> list[str]:
    """`count` CSS colours from -0.5 to +0.5: the legend of the difference strip."""
    at = np.rint(np.linspace(1, 253, count)).astype(int)
    return ["#" + bytes(_PALETTE[i]).hex() for i in at]


def _gray(cut: F32, black: float, white: float) -> U8:
    # 7 bits: a step of 2 of 256 cannot be seen in a scan, and the file is a fifth smaller.
    level = np.clip((cut - black) / (white - black), 0.0, 1.0) * 127.0
    return np.asarray(np.rint(level) * 2, dtype=np.uint8)


def _diverging(change: F32, cover: F32) -> U8:
    index = np.rint(_ZERO + np.clip(change / DIFFERENCE_LIMIT, -1.0, 1.0) * 126.0)
    return np.where(cover >= 0.5, index, _OUTSIDE).astype(np.uint8)


def _strip(slices: list[U8], ink: int) -> U8:
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


# Reading


def _from_record(record: Any) -> Figure:
    if record["format"] != _FORMAT or record["version"] != _VERSION:
        raise ValueError("unknown format or version")
    strips = [base64.b64decode(record[key], validate=True) for key in ("before", "after", "difference")]
    sizes = {png_size(strip) for strip in strips}
    if len(sizes) != 1 or not all(0 < side <= 8 * MAX_PIXELS for side in next(iter(sizes))):
        raise ValueError("pictures of unequal or absurd size")
    counts = [tuple(int(n) for n in record[key]) for key in ("histogram_before", "histogram_after")]
    if any(len(c) != BINS or min(c) < 0 for c in counts):
        raise ValueError("bad histogram")
    numbers = [float(x) for x in (*record["centre_mm"], *record["window"], record["mean_change"])]
    if len(numbers) != 6 or not all(math.isfinite(x) for x in numbers):
        raise ValueError("bad numbers")
    x, y, z, black, white, change = numbers
    space = str(record["space"])
    if space not in ("native", "model"):
        raise ValueError("unknown space")
    before, after, difference = strips
    small = [base64.b64decode(record[name], validate=True) for name in _SMALL]
    for volume, means in zip(small[:2], small[2:], strict=True):
        check_small(volume, means)
    return Figure(
        before, after, difference, counts[0], counts[1], (x, y, z), (black, white), change, space, *small
    )
