"""How the picture of one scan is drawn: mid-slices before and after, their difference, and two histograms.

Nothing but a base install is needed. It takes slices, a strided subsample and 2 mm averages only: no copy of
the volume is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import GridMismatch
from hz_runtime.model_space.foreground import blocks
from hz_runtime.report.figure import BINS, MAX_PIXELS, Figure
from hz_runtime.report.png import encode_png
from hz_runtime.report.strips import INK, difference_palette, diverging, gray, resize, strip, upright
from hz_runtime.report.thumbnail import thumbnail

_MARGIN_MM = 5.0
_SAMPLES = 2**18

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Windows = tuple[tuple[float, float], tuple[float, float]]


class ScanLike(Protocol):
    """What is drawn of a `Volume`: a RAS float32 array (I, J, K) and its 4x4 affine in mm."""

    @property
    def data(self) -> F32: ...
    @property
    def affine(self) -> F64: ...


class PreparedLike(Protocol):
    """What is drawn of a `Prepared`: the grid and the limits of its intensities in native units."""

    @property
    def grid(self) -> F32: ...
    @property
    def grid_affine(self) -> F64: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Sides:
    """What is compared: a scan before and after, (I, J, K) float32 on one grid, its axes in RAS order.

    affine : (4, 4), voxel to world mm.  low, high : raw values that become 0 and 1.
    space : "native" or "model", the grid's.
    """

    raw: F32
    after: F32
    affine: F64
    low: float
    high: float
    space: str

    @property
    def scale(self) -> float:
        """What raw values above `low` are multiplied by; 0 where they have no range."""
        span = self.high - self.low
        return 1.0 / span if math.isfinite(span) and span > 0 else 0.0

    @property
    def spacing(self) -> F64:
        """Sides of a voxel, mm."""
        squares: F64 = (np.asarray(self.affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0)
        return np.sqrt(squares)

    def scaled(self, raw: F32) -> F32:
        """Raw values as the network saw them, 0 to 1."""
        scaled: F32 = np.clip((raw - self.low) * self.scale, 0.0, 1.0)
        return scaled

    def brain(self, raw: F32, after: F32) -> Mask:
        """Voxels to compare. A native output is zero outside the brain; a network's grid need not be."""
        inside: Mask = after > 0 if self.space == "native" else (raw - self.low) * self.scale > 0.02
        return inside


@dataclass(frozen=True, eq=False)
class Sample:
    """A regular subsample of both sides.

    step : voxels from one to the next, along each axis.  brain : mask of it.
    raw, after : values (N,) inside the brain.
    """

    step: int
    brain: Mask
    raw: F32
    after: F32

    @classmethod
    def of(cls, sides: Sides) -> Sample:
        step = max(1, math.ceil((sides.raw.size / _SAMPLES) ** (1 / 3)))
        coarse = (slice(None, None, step),) * 3
        raw, after = _finite(sides.raw[coarse]), _finite(sides.after[coarse])
        brain = sides.brain(raw, after)
        return cls(step, brain, raw[brain], after[brain])


@dataclass(frozen=True)
class View:
    """Where slices are cut: through the voxel `centre`, each as large as `box` (first and past-the-last voxel
    by axis)."""

    centre: list[int]
    box: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Rows:
    """A sagittal, a coronal and an axial slice each, (h, w) uint8, of one scale.

    before, after : levels of gray.  difference : indices of `strips.difference_palette`.
    """

    before: list[U8]
    after: list[U8]
    difference: list[U8]


def figure_data(
    volume: ScanLike, prepared: PreparedLike, harmonized_native: F32 | None, harmonized_grid: F32
) -> Figure:
    """Draw one scan.

    volume : the scan, RAS. prepared : what the network was given.
    harmonized_native : (I, J, K) float32 in [0, 1] on the scan's grid, zero outside the brain; or
        None, and then both sides are drawn on the network's grid.
    harmonized_grid : (D, H, W) float32 in [0, 1].
    Raises GridMismatch when the two arrays to compare differ in shape.
    """
    sides = _sides(volume, prepared, harmonized_native, harmonized_grid)
    sample = Sample.of(sides)
    scaled = sides.scaled(sample.raw)
    windows = _windows(sample)
    view = _view(sample, sides)
    before, after, difference = _strips(sides, view, windows)
    black, white = windows[0]
    low, scale = sides.low, sides.scale
    shown = ((black - low) * scale, (white - low) * scale) if scale else (0.0, 1.0)
    x, y, z, _ = (np.asarray(sides.affine, dtype=np.float64) @ np.array([*view.centre, 1.0])).tolist()
    return Figure(
        before=before,
        after=after,
        difference=difference,
        histogram_before=histogram(scaled),
        histogram_after=histogram(sample.after),
        centre_mm=(round(x, 1), round(y, 1), round(z, 1)),
        window=windows[0],
        mean_change=round(float(np.abs(sample.after - scaled).mean()), 5) if scaled.size else 0.0,
        space=sides.space,
        small_before=thumbnail(sides.raw, sides.affine, view.box, low, sides.high, shown),
        small_after=thumbnail(sides.after, sides.affine, view.box, 0.0, 1.0, windows[1]),
        blocks_before=blocks(prepared.grid),
        blocks_after=blocks(harmonized_grid),
        window_after=windows[1],
    )


def histogram(values: F32) -> tuple[int, ...]:
    """Counts of `values` in 64 equal bins over [0, 1]; values outside go to the outermost bins."""
    index = np.clip(np.floor(values.ravel() * BINS), 0, BINS - 1).astype(np.int64)
    return tuple(int(count) for count in np.bincount(index, minlength=BINS))


def _sides(volume: ScanLike, prepared: PreparedLike, native: F32 | None, grid: F32) -> Sides:
    if native is not None:
        low, high = float(prepared.low), float(prepared.high)
        sides = Sides(volume.data, native, volume.affine, low, high, "native")
    else:
        mirrored = tuple(axis for axis in range(3) if prepared.grid_affine[axis, axis] < 0)
        raw, after = np.flip(prepared.grid, mirrored), np.flip(grid, mirrored)
        affine = _mirrored(prepared.grid_affine, raw.shape, mirrored)
        sides = Sides(raw, after, affine, 0.0, 1.0, "model")
    if sides.raw.shape != sides.after.shape or sides.raw.ndim != 3:
        raise GridMismatch(
            f"The scan is {sides.raw.shape} and its harmonized copy {sides.after.shape}: cannot compare."
        )
    return sides


def _mirrored(affine: F64, shape: tuple[int, ...], axes: tuple[int, ...]) -> F64:
    """The affine of a grid whose `axes` run the other way, over the same box."""
    moved = np.array(affine, np.float64)
    for axis in axes:
        moved[:3, 3] += moved[:3, axis] * (shape[axis] - 1)
        moved[:3, axis] *= -1
    return moved


def slices(sides: Sides, longest: int) -> Rows:
    """Mid-slices of both sides and of their difference, `longest` pixels on the longest side of the brain."""
    sample = Sample.of(sides)
    return _slices(sides, _view(sample, sides), _windows(sample), longest)


def _slices(sides: Sides, view: View, windows: Windows, longest: int) -> Rows:
    spacing = sides.spacing
    pixel = max(float((b - a) * s) for (a, b), s in zip(view.box, spacing, strict=True)) / longest
    rows = Rows([], [], [])
    for axis in range(3):
        raw, after = (_slice(side, axis, view) for side in (sides.raw, sides.after))
        inside = sides.brain(raw, after)
        change = np.where(inside, after - sides.scaled(raw), np.float32(0))
        mm = [float(spacing[k]) for k in range(3) if k != axis]
        pictures = [
            upright(resize(cut, mm, pixel), axis) for cut in (raw, after, change, inside.astype(np.float32))
        ]
        rows.before.append(gray(pictures[0], *windows[0]))
        rows.after.append(gray(pictures[1], *windows[1]))
        rows.difference.append(diverging(pictures[2], pictures[3]))
    return rows


def _strips(sides: Sides, view: View, windows: Windows) -> tuple[bytes, bytes, bytes]:
    """PNGs of the slices before, after, and of their difference."""
    rows = _slices(sides, view, windows, MAX_PIXELS)
    return (
        encode_png(strip(rows.before, ink=255)),
        encode_png(strip(rows.after, ink=255)),
        encode_png(strip(rows.difference, ink=INK), difference_palette()),
    )


def _finite(cut: F32) -> F32:
    # A network can answer NaN; the picture must show the rest.
    return np.where(np.isfinite(cut), cut, 0).astype(np.float32, copy=False)


def _windows(sample: Sample) -> Windows:
    """What is drawn as black and as white of each side: each has a scale of its own, and a harmonized brain
    need not reach the end of it."""
    return _window(sample.raw), _window(sample.after)


def _window(inside: F32) -> tuple[float, float]:
    if inside.size == 0:
        return 0.0, 1.0
    black, white = (float(v) for v in np.percentile(inside, [1.0, 99.5]))
    return (black, white) if white > black else (black - 0.5, black + 0.5)  # a flat brain is seen


def _view(sample: Sample, sides: Sides) -> View:
    """Middle and bounding box (with a margin) of the brain, in full-resolution voxels."""
    centre, box = [], []
    for axis, (length, mm) in enumerate(zip(sides.raw.shape, sides.spacing, strict=True)):
        profile = sample.brain.sum(axis=tuple(k for k in range(3) if k != axis))
        # Specks outside the brain must not stretch the box: 1 % of the fullest plane is the floor.
        planes = np.flatnonzero(profile > 0.01 * profile.max()) if profile.any() else np.arange(profile.size)
        first, last = int(planes[0]) * sample.step, (int(planes[-1]) + 1) * sample.step
        margin = max(1, round(_MARGIN_MM / max(float(mm), 1e-6)))
        box.append((max(0, first - margin), min(length, last + margin)))
        weight = profile if profile.any() else np.ones_like(profile)
        middle = float((np.arange(profile.size) * weight).sum() / weight.sum()) * sample.step
        centre.append(min(length - 1, round(middle)))
    return View(centre, box)


def _slice(data: F32, axis: int, view: View) -> F32:
    at: list[int | slice] = [slice(a, b) for a, b in view.box]
    at[axis] = view.centre[axis]
    return _finite(data[tuple(at)])
