"""A pose brought to the place where the fine pattern of the brain fits the template's best.

A search over many starts ends somewhere within a millimetre or two of the best fit, and elsewhere for a
difference in the seventh digit. From there a few Gauss-Newton steps (Lucas & Kanade 1981) lead to one and the
same place. What is compared is what `folds.detail` leaves of scan and template: neither a receive field nor
large ventricles count. Voxels that fit badly have little weight (Cauchy's, by the median deviation).

`benchmarks/label_outlines.py` judges it by drawn brains. It is no search: what is centimetres
away is not found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.morphology import dilated
from hz_runtime.model_space.resample import averaged, resample
from hz_runtime.preparation.folds import Neighbourhoods
from hz_runtime.preparation.template import Template, points

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

MM = 4.0  # voxels that are compared: finer ones take eight times as long and place a brain no better
NEIGHBOURHOOD = 3  # voxels, half the side of the box whose mean is taken off: 14 mm
AIR = 2  # voxels of the template around its brain that count where the scan is a bare brain, 4 mm
BRIGHTEST = 99  # percentile; what is brighter is a vessel
CAUCHY = 2.385  # 95 % efficient where errors are normal (Holland & Welsch 1977)
MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
ARM_MM = 50.0  # rotations and stretches are counted in mm at this distance: no parameter outweighs another
LEAST_STEP_MM = 0.01
MOST_STEPS = 40  # heads take 8 to 24
LEAST_SIZE = 0.1  # times the volume, in one step; turned inside out is below 0
FARTHEST_MM = 15.0  # more is no refinement: another place was found


@dataclass(frozen=True, eq=False)
class _Goal:
    """The template as refinement sees it: a grid of `shape` and `affine`, and `inside` of it what counts.

    wanted : `shape` bool, what is looked at.  pattern : (n,) float64, the template's detail inside.
    at : (n, 3) world mm.  arms : (n, 4), the places about `centre_mm` in units of ARM_MM, and 1.
    """

    shape: tuple[int, ...]
    affine: F64
    inside: Neighbourhoods
    wanted: Mask
    pattern: F64
    at: F64
    centre_mm: F64
    arms: F64


@lru_cache(maxsize=2)
def _goal(template: Template, bare: bool) -> _Goal:
    data, affine = averaged(template.data, template.affine, MM)
    part = dilated(template.mask, AIR) if bare else template.mask
    inside = resample(part.astype(np.float32), template.affine, data.shape, affine) > 0.5
    at = points(inside, affine)
    centre = at.mean(axis=0)
    arms = np.column_stack([(at - centre) / ARM_MM, np.ones(len(at))])
    near = Neighbourhoods.of(inside, NEIGHBOURHOOD)
    pattern = near.detail(data[near.box])[near.inside]
    wanted = dilated(inside)  # slopes take the voxels beside it
    return _Goal(data.shape, affine, near, wanted, pattern, at, centre, arms)


def refined_pose(
    data: F32, affine: F64, pose: F64, template: Template, *, bare: bool, farthest_mm: float = FARTHEST_MM
) -> F64:
    """The best fit near `pose`, (4, 4) float64 mm, 12 degrees of freedom; `pose` if there is none.

    data : (I, J, K) float32 with `affine` (4, 4), voxel to world mm.
    pose : (4, 4), scan's world to the template's, within some millimetres of the best fit.
    bare : whether the scan is a brain in air, whose outline counts, too; of a head only what lies inside the
        template's brain is compared.
    farthest_mm : from `pose`, of any point of the brain; what lies beyond is no best fit near it.
    """
    goal = _goal(template, bare)
    thin, grid = averaged(data, affine, MM / 2)
    found = pose
    fit: F64 | None = None
    for _ in range(MOST_STEPS):
        seen = resample(thin, found @ grid, goal.shape, goal.affine, goal.wanted)
        step = _step(seen, goal, fit)
        if step is None:
            return pose
        change, fit = step
        found = np.linalg.inv(change) @ found
        moved = distances(change, np.eye(4), goal.at)
        if float(moved.max()) < LEAST_STEP_MM:
            break
    apart = float(distances(found @ np.linalg.inv(pose), np.eye(4), goal.at).max())
    return found if np.isfinite(apart) and apart < farthest_mm else pose


def _step(seen: F32, goal: _Goal, fit: F64 | None) -> tuple[F64, F64] | None:
    """(the move in template space to where the scan fits, (4, 4); the line from its detail to that).

    The template is a line of the scan, and not the other way round: else a scan without any pattern would
    fit best. None where the scan is constant or no move is the best one.
    """
    seen, inside = seen[goal.inside.box], goal.inside.inside
    bright = float(np.percentile(seen[inside], BRIGHTEST))
    if not bright > 0:
        return None
    pattern = goal.inside.detail(np.clip(seen, 0, bright) / bright)
    along = np.stack([np.gradient(pattern, axis=axis)[inside] for axis in range(3)])
    slopes = np.linalg.inv(goal.affine[:3, :3]).T @ along
    here = pattern[inside]
    terms = np.empty((len(here), 14))
    terms[:, 0], terms[:, 1] = 1, here
    terms[:, 2:] = (slopes.T[:, :, None] * goal.arms[:, None, :]).reshape(len(here), 12)
    line = fit
    if line is None:
        line = np.asarray(np.linalg.lstsq(terms[:, :2], goal.pattern, rcond=None)[0], np.float64)
    error = goal.pattern - terms[:, :2] @ line
    scale = CAUCHY * MAD * float(np.median(np.abs(error)))
    if not scale > 0:
        return np.eye(4), line
    weighted = terms / (1 + (error / scale) ** 2)[:, None]
    try:
        values = np.linalg.solve(weighted.T @ terms, weighted.T @ goal.pattern)
    except np.linalg.LinAlgError:
        return None
    if not values[1] > 0:
        return None  # dark where the template is bright: nothing to follow
    moves = (values[2:] / values[1]).reshape(3, 4)
    change: F64 = np.eye(4)
    change[:3, :3] += moves[:, :3] / ARM_MM
    change[:3, 3] = moves[:, 3] - moves[:, :3] @ goal.centre_mm / ARM_MM
    sound = bool(np.isfinite(change).all()) and float(np.linalg.det(change)) > LEAST_SIZE
    return (change, np.asarray(values[:2], np.float64)) if sound else None


def distances(one: F64, other: F64, at: F64) -> F64:
    """(n,) mm between where two maps (4, 4) send the points `at` (n, 3)."""
    change = one - other
    apart: F64 = np.linalg.norm(at @ change[:3, :3].T + change[:3, 3], axis=1)
    return apart
