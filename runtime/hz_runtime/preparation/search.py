"""A coarse search for a head: the pose in which brain, skull and air lie where the template has them.

The template's brain is compared together with a ring around it, where air is expected and skull or fluid
will do: scalp on the outline then costs more than it gains, also where fluid around an old brain leaves its
own edge faint. The search is exhaustive at 8 mm, from where refinement (`refined_pose`) mostly finds its way,
and can climb further at 4 mm, which is near enough for a mask.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.foreground import percentile
from hz_runtime.model_space.morphology import dilated
from hz_runtime.model_space.resample import averaged
from hz_runtime.preparation.template import Template, points

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

COARSE_MM, FINE_MM = 8.0, 4.0
RING = 4  # voxels of the template around its brain
BRIGHTEST = 95  # percentile of what lies on the brain: a bright scalp or vessel counts no more than that
# The grid: sizes of the template over the head's, nods in degrees, shifts up and forward in mm.
SIZES, NODS, SHIFTS = (1.0, 1.12, 1.25), (-20.0, 0.0, 20.0), (-16.0, 0.0, 16.0)
CLIMBED = 4  # best places of the grid to climb from
# Shift in mm, rotation in degrees, logarithms of the sizes along the axes, shears: the first step of each.
STEPS = np.array([8.0] * 3 + [8.0] * 3 + [0.08] * 3 + [0.05] * 3)
SIZED = 9  # without the shears
LEAST_COARSE_MM, LEAST_FINE_MM = 3.0, 0.6  # shifts that are not halved further
LEAST_GAIN = 1e-4


class _View:
    """A scan beside the template at a coarse spacing: the correlation of the two under any move."""

    def __init__(self, data: F32, affine: F64, start: F64, template: Template, mm: float) -> None:
        thin, grid = averaged(data, affine, mm)
        padded = np.pad(np.ascontiguousarray(thin), 1)
        self._flat = padded.ravel().astype(np.float64)
        self._last = np.array(padded.shape)[:, None] - 1.001
        self._strides = padded.shape[1] * padded.shape[2], padded.shape[2]
        self._from_world = np.linalg.inv(start @ grid)
        brain, at = averaged(template.data, template.affine, mm)
        parts = (template.mask, dilated(template.mask, RING))
        inside, wide = (averaged(part.astype(np.float32), template.affine, mm)[0] > 0.5 for part in parts)
        self._inside = inside[wide]
        self._at = points(wide, at)
        wanted = brain[wide].astype(np.float64)
        wanted -= wanted.mean()
        self._wanted = wanted / np.linalg.norm(wanted)
        self._template = template

    def match(self, values: F64) -> float:
        """Correlation with the template in its brain and the ring; 0 where the scan is constant there."""
        move = pose_of(values, np.eye(4), self._template)  # of a scan that lies where `start` puts it
        seen = self._seen(self._from_world @ np.linalg.inv(move))
        seen = np.minimum(seen, percentile(seen[self._inside], BRIGHTEST))
        seen -= seen.mean()
        size = float(np.linalg.norm(seen))
        return float(seen @ self._wanted) / size if size > 0 else 0.0

    def _seen(self, to_voxels: F64) -> F64:
        """(n,): the scan at the template's points, linear between voxels, zero outside."""
        at = np.ascontiguousarray((self._at @ to_voxels[:3, :3].T + to_voxels[:3, 3] + 1).T)
        np.clip(at, 0, self._last, out=at)
        low = at.astype(np.int64)
        at -= low
        x, y, z = ((1 - part, part) for part in at)  # weights of the near and the far corner along each axis
        across, along = self._strides
        first = low[0] * across + low[1] * along + low[2]
        seen = np.zeros(low.shape[1])
        for i, j in product((0, 1), repeat=2):
            edge = x[i] * y[j]
            for k in (0, 1):
                seen += edge * z[k] * self._flat.take(first + (i * across + j * along + k))
        return seen


def coarse_values(data: F32, affine: F64, start: F64, template: Template) -> F64:
    """(12,) values as STEPS names them, of the best place of the grid after a climb, on voxels of 8 mm.

    data : (I, J, K) float32, whole head or brain, with `affine` (4, 4), voxel to world mm.
    start : (4, 4), a shift that puts the head roughly on the template.
    """
    view = _View(data, affine, start, template, COARSE_MM)
    tries = []
    for size, nod, up, forward in product(SIZES, NODS, SHIFTS, SHIFTS):
        values = np.zeros(len(STEPS))
        values[[1, 2, 3]] = forward, up, nod
        values[6:9] = np.log(size)
        tries.append(values)
    tries.sort(key=view.match, reverse=True)
    climbed = [_climb(view, values, STEPS, LEAST_COARSE_MM, SIZED) for values in tries[:CLIMBED]]
    return max(climbed, key=view.match)


def fine_values(data: F32, affine: F64, start: F64, template: Template, values: F64) -> F64:
    """(12,) values after a climb from those of `coarse_values`, shears included, on voxels of 4 mm."""
    view = _View(data, affine, start, template, FINE_MM)
    return _climb(view, values, STEPS / 4, LEAST_FINE_MM, len(STEPS))


def pose_of(values: F64, start: F64, template: Template) -> F64:
    """(4, 4) float64, scan's world mm to the template's, of values from `start` on, 12 degrees of freedom."""
    matrix = np.eye(4)
    matrix[:3, :3] = _linear(values)
    matrix[:3, 3] = template.centre_mm - matrix[:3, :3] @ template.centre_mm + values[:3]
    return matrix @ start


def _climb(view: _View, values: F64, steps: F64, least_mm: float, free: int) -> F64:
    """Steps along one value after another, and along the sum of them, halved where none gains."""
    best = view.match(values)
    while steps[0] >= least_mm:
        before, came = best, values
        for k in range(free):
            for sign in (1, -1):
                tried = values.copy()
                tried[k] += sign * steps[k]
                if (found := view.match(tried)) > best:
                    best, values = found, tried
                    break
        onward = values + (values - came)
        if best > before and (found := view.match(onward)) > best:
            best, values = found, onward
        if best - before < LEAST_GAIN:
            steps = steps / 2
    return values


def _linear(values: F64) -> F64:
    """(3, 3): rotations about x, y and z, then shears, then sizes along the axes."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.radians(values[3:6])):
        i, j = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    shear = np.eye(3)
    shear[[0, 0, 1], [1, 2, 2]] = values[9:12]
    linear: F64 = np.diag(np.exp(values[6:9])) @ shear @ rotation
    return linear
