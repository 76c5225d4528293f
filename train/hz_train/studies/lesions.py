"""Lesions planted in white matter before a scan is harmonized, and how much of them is written.

Balls of one intensity in the place of tissue, dark as a T1-weighted infarct or bright as blood or contrast
medium, of three sizes, far enough apart to be measured each by itself. No real lesion is a ball; what is
asked is whether a harmonizer that never saw any takes one for tissue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, zoom

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

RADII_MM = (10.0, 6.0, 3.0)  # large ones find their place first
LEVELS: Mapping[str, float] = {"dark": 0.6, "bright": 1.3}  # of the white matter around
GAP_MM = 12.0  # between the surfaces of two lesions
NEAR_MM, FAR_MM = 2.0, 8.0  # from the surface: where the white matter around is looked at
REACH_MM = 4.0  # from the surface: how far out a lesion is looked for
PARTS = 5  # along each axis of a voxel, by which its share of a ball is counted
FINE_MM = 0.5  # voxels on which a lesion's volume is counted


@dataclass(frozen=True, eq=False)
class Ball:
    """A ball on a scan's grid.

    radius : mm.  box : the part of the grid around it.  distance : mm from its centre, on that part.
    coverage : the share of every voxel there that lies in it.  spacing : (3,) voxel sizes in mm.
    """

    radius: float
    box: Box
    distance: F64
    coverage: F32
    spacing: F64

    @classmethod
    def around(cls, centre: Sequence[int], radius: float, shape: Sequence[int], spacing: F64) -> Ball:
        """centre : voxel (3,)."""
        reach = np.ceil((radius + FAR_MM) / spacing).astype(int)
        ends = [(max(0, c - r), min(n, c + r + 1)) for c, r, n in zip(centre, reach, shape, strict=True)]
        axes = [(np.arange(a, b) - c) * s for (a, b), c, s in zip(ends, centre, spacing, strict=True)]
        distance = _from_origin(axes)
        within = (np.arange(PARTS) + 0.5) / PARTS - 0.5  # of a voxel's width
        finer = [(a[:, None] + within * s).ravel() for a, s in zip(axes, spacing, strict=True)]
        held = (_from_origin(finer) <= radius).reshape([n for a in axes for n in (a.size, PARTS)])
        coverage = held.mean(axis=(1, 3, 5), dtype=np.float32)
        first, second, third = (slice(a, b) for a, b in ends)
        return cls(radius, (first, second, third), distance, coverage, spacing)

    @property
    def core(self) -> Mask:
        """Voxels that lie in it as a whole; the one at its centre where it is smaller than a voxel."""
        return np.asarray(self.coverage >= min(1.0, float(self.coverage.max())))

    def shell(self, white: Mask) -> Mask:
        """The white matter around it, on its box.  white : (I, J, K), without other lesions."""
        near = (self.distance > self.radius + NEAR_MM) & (self.distance < self.radius + FAR_MM)
        return np.asarray(near & white[self.box])


def _from_origin(axes: Sequence[F64]) -> F64:
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.asarray(np.sqrt(x * x + y * y + z * z))


@dataclass(frozen=True)
class Measured:
    """A lesion as a volume shows it.

    cm3 : where it changed the volume by at least half of what it did in its core.
    contrast : its core against the white matter around, as a share of the latter; below 0 for dark.
    """

    cm3: float
    contrast: float


def place(white: Mask, spacing: F64) -> list[Ball]:
    """Balls of the three radii, each at the deepest place of white matter that others leave; fewer where
    none.

    white : (I, J, K) bool.  spacing : (3,) mm. The largest may reach into grey matter, as large lesions do.
    """
    depth = distance_transform_edt(white, sampling=spacing)
    index = np.ogrid[tuple(slice(n) for n in white.shape)]
    found: list[Ball] = []
    centres: list[tuple[int, ...]] = []
    for radius in RADII_MM:
        free = depth
        for ball, centre in zip(found, centres, strict=True):
            parts = zip(index, centre, spacing, strict=True)
            apart = sum(np.square((axis - c) * s) for axis, c, s in parts)
            free = np.where(apart > (radius + ball.radius + GAP_MM) ** 2, free, 0)
        if not free.any():
            continue
        centres.append(tuple(int(n) for n in np.unravel_index(int(free.argmax()), white.shape)))
        found.append(Ball.around(centres[-1], radius, white.shape, spacing))
    return found


def planted(data: F32, balls: Sequence[Ball], white: Mask, kind: str) -> F32:
    """A scan with lesions, all dark or all bright.

    data : (I, J, K) with air 0.  white : its white matter.  kind : a key of LEVELS.
    """
    made = data.copy()
    for ball in balls:
        around = ball.shell(white)
        level = LEVELS[kind] * float(data[ball.box][around].mean()) if around.any() else 0.0
        part = made[ball.box]
        made[ball.box] = part + ball.coverage * (np.float32(level) - part)
    return made


def measure(after: F32, without: F32, ball: Ball, white: Mask) -> Measured:
    """A lesion in a volume `after` it was planted, against the volume `without` it, both (I, J, K).

    What changed all around, as where a scan's range moves with its brightest voxel, is no part of it.
    """
    change = after[ball.box].astype(np.float64) - without[ball.box]
    beyond = (ball.distance > ball.radius + REACH_MM) & (ball.distance < ball.radius + FAR_MM)
    change -= np.median(change[beyond]) if beyond.any() else 0
    depth = float(np.median(change[ball.core]))
    here, around = after[ball.box], ball.shell(white)
    bright = float(here[around].mean(dtype=np.float64)) if around.any() else float("nan")
    contrast = float(here[ball.core].mean(dtype=np.float64)) / bright - 1 if bright else float("nan")
    if depth == 0:
        return Measured(0.0, contrast)
    share = np.where(ball.distance <= ball.radius + REACH_MM, change / depth, 0)
    # On finer voxels, with what lies between interpolated: counted whole, a small lesion has few.
    factors = np.maximum(1, np.round(ball.spacing / FINE_MM)).astype(int)
    fine = zoom(share, factors, order=1, mode="nearest", grid_mode=True)
    voxel = float((ball.spacing / factors).prod()) / 1000
    return Measured(float((fine >= 0.5).sum()) * voxel, contrast)
