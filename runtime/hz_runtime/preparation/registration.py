"""Registration to the template: twelve degrees of freedom, and six by polar decomposition.

A coarse search (`search`) and refinement (`refinement`) find nearly all heads. What they do not find,
niimath's coreg_fast does, which maximizes Hellinger and correlation ratio from many coarse starts, in three
times the time. No rigid mode is used: with twelve degrees of freedom the brain's size does not pull at its
place, and the rotation nearest to the affine (Higham 1986) is the pose.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import HzError, ScanError, UnpreparedScan
from hz_runtime.model_space.foreground import FOREGROUND_SHARE, foreground_threshold
from hz_runtime.model_space.resample import averaged, resample
from hz_runtime.preparation.exchange import hand_over
from hz_runtime.preparation.folds import LEAST_FOLDS, folds
from hz_runtime.preparation.n4 import niimath
from hz_runtime.preparation.refinement import distances, refined_pose
from hz_runtime.preparation.search import coarse_values, fine_values, pose_of
from hz_runtime.preparation.template import Template, points

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MATCHING_MM = 2.0  # niimath's finest stage; finer voxels are only averaged by it
LEAST_SIMILARITY = 0.40  # real heads 0.49 to 0.72; a head that registration lost 0.26
WILL_DO = 0.45  # similarity of a captured head: 25 real T1w scans reach 0.49 or more; a lost one had 0.26
STEPS = 323.7  # to the bright end; no simple ratio to the few hundred values of an 8-bit scan
SCALP_MM, UPPER_MM = 6.0, 100.0
FROM_COARSE_MM = 45.0  # the coarse search may end centimetres off at the brain's edge


def affine_pose(data: F32, affine: F64, template: Template, threads: int = 1) -> F64:
    """The affine map from a scan's world to the template's, (4, 4) float64 mm, 12 degrees of freedom.

    data : (I, J, K) float32, whole head or brain, with `affine` (4, 4), voxel to world mm.
    The search starts where the affine places the scan.
    Raises UsageError where niimath is missing, UnpreparedScan where it finds no map, HzError where it is
    killed or has no disk.
    """
    thin, grid = averaged(data, affine, MATCHING_MM)
    with tempfile.TemporaryDirectory(prefix="hz-registration-") as name:
        folder = Path(name)
        hand_over(folder / "scan.nii", in_steps(thin), grid)
        hand_over(folder / "template.nii", template.data, template.affine)
        options = ["-cost", "fast", "-savemat", "map.json", "-final", "NN"]
        command = ["scan.nii", "-allineate", "template.nii", *options, "out"]
        complaint = niimath("Registration", command, folder, threads)
        if complaint is not None or not (folder / "map.json").exists():
            raise UnpreparedScan(
                f"niimath found no map to the template ({complaint or 'it wrote nothing'}).",
                "Look at the scan: is a head in it?",
            )
        return _map((folder / "map.json").read_bytes())


def in_steps(data: F32) -> F32:
    """An (I, J, K) float32 scan in whole steps of its bright end, from 0: the same whatever its unit.

    The search takes another path for a difference in the seventh digit, which scaling or shifting a scan
    leaves, and may end a millimetre away.
    """
    low = float(data.min())
    bright = (foreground_threshold(data) - low) / FOREGROUND_SHARE
    steps: F32 = np.rint((data - np.float32(low)) * np.float32(STEPS / bright))
    return steps


def _map(saved: bytes) -> F64:
    try:
        pose = np.asarray(json.loads(saved)["moving_to_fixed"], np.float64)
    except (ValueError, TypeError, KeyError):
        pose = np.zeros((4, 4))
    if pose.shape != (4, 4) or not np.isfinite(pose).all() or np.linalg.det(pose[:3, :3]) <= 0:
        raise UnpreparedScan("niimath's map to the template is no map.", "Look at the scan: is a head in it?")
    return pose


def rigid_pose(pose: F64, centre_mm: F64) -> F64:
    """The rotation and translation nearest to an affine pose, (4, 4) float64, 6 degrees of freedom.

    The rotation is the polar factor; the translation sends the point that `pose` sends to `centre_mm` (3,)
    there as well.
    """
    left, _, right = np.linalg.svd(pose[:3, :3])
    rotation = left @ right
    source = np.linalg.solve(pose, np.append(centre_mm, 1.0))[:3]
    rigid = np.eye(4)
    rigid[:3, :3] = rotation
    rigid[:3, 3] = centre_mm - rotation @ source
    return rigid


def scales(pose: F64) -> tuple[float, float, float]:
    """Smallest, middle and largest stretch of a pose."""
    low, middle, high = sorted(float(s) for s in np.linalg.svd(pose[:3, :3], compute_uv=False))
    return low, middle, high


def mean_distance(one: F64, other: F64, at: F64) -> float:
    """Mean distance in mm between where two poses (4, 4) send the points `at` (n, 3)."""
    return float(distances(one, other, at).mean())


def rotation_degrees(pose: F64) -> float:
    """Angle of the rotation of a pose, 0 to 180."""
    left, _, right = np.linalg.svd(pose[:3, :3])
    return float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))


def similarity(seen: F32, template: Template) -> float:
    """Correlation of a scan in template space, (91, 109, 91), with the template in the template's brain.

    The scan's brightest and darkest hundredth are clipped; 0 where it is constant there.
    """
    inside = seen[template.mask]
    inside = np.clip(inside, *np.percentile(inside, [1, 99]))
    if not inside.std() > 0:
        return 0.0
    return float(np.corrcoef(inside, template.data[template.mask])[0, 1])


def placed(data: F32, affine: F64, template: Template) -> F64:
    """The shift, (4, 4), that puts the top of a head at the template's and centres its upper part there.

    Tops are compared because a neck moves a head's centre of mass and not its top. A header's own place is
    not trusted: the origin of many files is a corner of the box.
    """
    at = points(data > foreground_threshold(data), affine)
    goal = points(template.mask, template.affine)
    top, goal_top = float(np.percentile(at[:, 2], 99.9)), float(goal[:, 2].max()) + SCALP_MM
    upper = at[at[:, 2] > top - UPPER_MM]
    shift = np.eye(4)
    shift[:2, 3] = template.centre_mm[:2] - upper[:, :2].mean(axis=0)
    shift[2, 3] = goal_top - top
    return shift


def registered(
    data: F32, affine: F64, template: Template, threads: int = 1, *, bare: bool = False
) -> tuple[F64, float, F32]:
    """(affine pose (4, 4), its `similarity`, the scan in template space (91, 109, 91), zero outside
    `template.around`): of the first of three ways that finds a brain.

    A coarse search and refinement, where the template's `folds` are then found in the scan; else what niimath
    finds from the head's top at the template's (`placed`), then from where the header says, refined, where
    the similarity or the folds will do. Where none will, the pose with most of the folds counts: the better
    one of niimath's, or that of a finer search.
    bare : whether the scan is a brain in air.
    Raises UnpreparedScan where niimath, when it is asked, finds no map from either start, HzError where it
    was killed and no other start will do.
    """
    thin, grid = averaged(data, affine, MATCHING_MM)  # all of it looks at no finer voxels
    shift = placed(thin, grid, template)
    values = coarse_values(thin, grid, shift, template)
    pose = pose_of(values, shift, template)
    pose = refined_pose(thin, grid, pose, template, bare=bare, farthest_mm=FROM_COARSE_MM)
    seen = _through(data, affine, pose, template)
    if folds(seen, template) >= LEAST_FOLDS:
        return pose, similarity(seen, template), seen
    best: tuple[float, F64, F32] | None = None
    failed: ScanError | None = None
    killed: HzError | None = None
    for start in (shift, np.eye(4)):
        try:
            pose = affine_pose(thin, start @ grid, template, threads) @ start
        except ScanError as error:
            failed = error
            continue
        except HzError as error:
            killed = error
            continue
        pose = refined_pose(thin, grid, pose, template, bare=bare)
        seen = _through(data, affine, pose, template)
        found = similarity(seen, template)
        if found >= WILL_DO or folds(seen, template) >= LEAST_FOLDS:
            return pose, found, seen
        if best is None or found > best[0]:
            best = found, pose, seen
    if killed is not None:
        raise killed  # that start might have done
    if best is not None and best[0] >= LEAST_SIMILARITY:
        return best[1], best[0], best[2]
    if best is None:
        assert failed is not None
        raise failed
    searched = pose_of(fine_values(thin, grid, shift, template, values), shift, template)
    poses = (best[1], refined_pose(thin, grid, searched, template, bare=bare))
    tried = [(pose, _through(data, affine, pose, template)) for pose in poses]
    pose, seen = max(tried, key=lambda one: folds(one[1], template))
    return pose, similarity(seen, template), seen


def _through(data: F32, affine: F64, pose: F64, template: Template) -> F32:
    """A scan in template space, (91, 109, 91), zero outside `template.around`."""
    return resample(data, pose @ affine, template.mask.shape, template.affine, template.around)
