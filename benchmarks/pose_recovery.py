"""Is a head found again after it was moved on purpose, and however its file stores its axes?

    python benchmarks/pose_recovery.py HEAD [--spacing 2] [--orientations 48]

HEAD is resampled once to --spacing. Moves: 30 degrees either way about each axis, 40 mm along each, and both
together; each moved head is registered anew, and its rigid pose held against the unmoved head's: mean
displacement over the brain, mm, which should stay below 2. Orientations: the head's voxels are written in
each of the 48 orders and directions of axes, read back and registered: largest differences of the voxels and
of the pose from those of the first. Registrations of byte-equal inputs are run once. Prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe_machine

MARGIN_MM = 45.0  # around the head, so that no move takes any of it out of the box
MOVES = [((s * 30.0 * (k == 0), s * 30.0 * (k == 1), s * 30.0 * (k == 2)), (0.0, 0.0, 0.0))
         for k in range(3) for s in (1, -1)]  # fmt: skip
MOVES += [((0.0, 0.0, 0.0), (40.0 * (k == 0), 40.0 * (k == 1), 40.0 * (k == 2))) for k in range(3)]
MOVES += [((-20.0, 15.0, 25.0), (25.0, -20.0, -24.0)), ((30.0, -10.0, -30.0), (-23.0, 23.0, 23.0))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("--spacing", type=float, default=2.0)
    parser.add_argument("--orientations", type=int, default=48)
    given = parser.parse_args()

    from hz_runtime.io.volume import read_volume

    scan = read_volume(given.head)
    data, affine = padded(scan.data, scan.affine, given.spacing)
    result = {"head": given.head.name, "spacing_mm": given.spacing, "shape": list(data.shape)}
    result["moves"] = moved(data, affine)
    result["worst_mm"] = max(move["apart_mm"] for move in result["moves"])
    result["orientations"] = oriented(data, affine, given.orientations)
    result["machine"] = describe_machine()
    print(json.dumps(result, indent=2))


def padded(data: Any, affine: Any, spacing: float) -> tuple[Any, Any]:
    """The head on isotropic voxels along the world's axes, with a margin of air."""
    import numpy as np

    from hz_runtime.model_space.resample import resample

    corners = np.array(list(itertools.product(*((0, n - 1) for n in data.shape))))
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    low, high = world.min(axis=0) - MARGIN_MM, world.max(axis=0) + MARGIN_MM
    grid = np.diag([spacing] * 3 + [1.0])
    grid[:3, 3] = np.round(low)
    shape = tuple(int(n) for n in np.ceil((high - low) / spacing))
    return resample(data, affine, shape, grid), grid


def moved(data: Any, affine: Any) -> list[dict[str, Any]]:
    """Every move: how far the pose of the moved head, taken back, is from that of the head."""
    import numpy as np

    from hz_runtime.model_space.resample import resample
    from hz_runtime.preparation import registration
    from hz_runtime.preparation.template import mni152, points

    template = mni152()
    affine_pose, similarity, _ = registration.registered(data, affine, template)
    pose = registration.rigid_pose(affine_pose, template.centre_mm)
    brain = points(template.mask, np.linalg.inv(pose) @ template.affine)
    rows = []
    for degrees, shift in MOVES:
        move = rotated(degrees, shift, brain.mean(axis=0))
        turned = resample(data, move @ affine, data.shape, affine)
        started = time.perf_counter()
        found, again, _ = registration.registered(turned, affine, template)
        rigid = registration.rigid_pose(found, template.centre_mm)
        apart = registration.mean_distance(rigid @ move, pose, brain)
        rows.append(
            {
                "degrees": list(degrees),
                "shift_mm": list(shift),
                "apart_mm": round(apart, 3),
                "similarity": round(again, 4),
                "similarity_unmoved": round(similarity, 4),
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
    return rows


def rotated(degrees: tuple[float, ...], shift: tuple[float, ...], centre: Any) -> Any:
    """(4, 4): rotations about x, then y, then z through `centre` (3,), then a shift in mm."""
    import numpy as np

    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = one @ turn
    move = np.eye(4)
    move[:3, :3] = turn
    move[:3, 3] = centre - turn @ centre + shift
    return move


def oriented(data: Any, affine: Any, count: int) -> dict[str, Any]:
    """The head in `count` of the 48 orientations, each through a file."""
    import nibabel as nib
    import numpy as np

    from hz_runtime.io.volume import read_volume
    from hz_runtime.preparation import registration
    from hz_runtime.preparation.template import mni152, points

    template = mni152()
    poses: dict[bytes, Any] = {}
    first: tuple[Any, Any, Any] | None = None
    voxels, places, apart = [], [], []
    codes = [
        (axes, flips)
        for axes in itertools.permutations(range(3))
        for flips in itertools.product((1, -1), repeat=3)
    ]
    for axes, flips in codes[:count]:
        image = nib.Nifti1Image(data, affine).as_reoriented(np.array(list(zip(axes, flips, strict=True))))
        with tempfile.TemporaryDirectory() as folder:
            nib.save(image, Path(folder) / "head.nii.gz")
            scan = read_volume(Path(folder) / "head.nii.gz")
        key = scan.data.tobytes("F") + scan.affine.tobytes()
        if key not in poses:
            found, *_ = registration.registered(scan.data, scan.affine, template)
            poses[key] = registration.rigid_pose(found, template.centre_mm)
        first = first or (scan.data, scan.affine, poses[key])
        voxels.append(float(np.abs(scan.data - first[0]).max() / first[0].max()))
        places.append(float(np.abs(scan.affine - first[1]).max()))
        brain = points(template.mask, np.linalg.inv(first[2]) @ template.affine)
        apart.append(registration.mean_distance(poses[key], first[2], brain))
    return {
        "n": len(voxels),
        "different_inputs": len(poses),
        "voxels_apart_share": max(voxels),
        "affine_apart_mm": max(places),
        "pose_apart_mm": round(max(apart), 4),
    }


if __name__ == "__main__":
    main()
