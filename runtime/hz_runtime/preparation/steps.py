"""One head from scan to template: gates, registration, brain mask, N4, pose, resampling.

The mask comes before N4, so that the field is estimated on the brain, and the affine registration before
the mask, which is carried through it. The pose is then refined on the brain alone: without scalp and field
it lands more exactly, and that it stays where it was is evidence that the head was captured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import GridMismatch, NoBrain
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.air import air_of_volume, with_air_lowest, with_air_zero
from hz_runtime.model_space.foreground import foreground_threshold, volume_cm3
from hz_runtime.model_space.missing import around_holes, missing_flags
from hz_runtime.model_space.morphology import eroded, filled
from hz_runtime.model_space.resample import Box, bounding_box, near_box, resample
from hz_runtime.preparation import gates
from hz_runtime.preparation.mask import propagated_mask, stripped
from hz_runtime.preparation.n4 import corrected
from hz_runtime.preparation.refinement import refined_pose
from hz_runtime.preparation.registration import mean_distance, registered, rigid_pose
from hz_runtime.preparation.template import Template, points
from hz_runtime.preparation.view import View, view_of

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
MaskChoice = Literal["auto", "none", "template"]
FindBrain = Callable[[Volume], Mask]
MARGIN = 2  # voxels kept around the brain for N4
INNER = 2  # voxels of the template from its brain's edge: as far in, every head has brain


@dataclass(frozen=True, eq=False)
class PreparedHead:
    """A head that passed every gate.

    brain : (I, J, K) float32 on the scan's own grid, N4-corrected, zero outside `mask`.
    mask : (I, J, K) bool.  how : where it came from: stripped, none, template, network or file.
    pose : (4, 4) float64, scan's world mm to the template's, of `dof` degrees of freedom.
    template_brain, template_mask : (91, 109, 91), float32 and bool, on the template's grid.
    similarity : of the affine registration with the template, a correlation.
    verdicts : of every gate.  seconds : wall time by step.  affine : (4, 4), voxel of `brain` to world mm.
    flags : reasons to look at the scan before trusting what is made of it.
    """

    brain: F32
    mask: Mask
    how: str
    pose: F64
    dof: int
    template_brain: F32
    template_mask: Mask
    similarity: float
    verdicts: tuple[gates.Verdict, ...]
    seconds: dict[str, float]
    affine: F64
    flags: tuple[str, ...] = ()


def prepare_head(
    volume: Volume,
    template: Template,
    *,
    dof: Literal[6, 12] = 6,
    brain_mask: MaskChoice | Mask = "auto",
    threads: int = 1,
    network: FindBrain | None = None,
) -> PreparedHead:
    """Bring one T1-weighted head, or a brain that is stripped already, into template space.

    dof : 6 keeps the brain's size (Komandur 2023), 12 scales and shears it to the template (Bashyam 2020).
    brain_mask : auto strips what is not stripped yet; none takes the scan as stripped; template strips in
        any case, by the template's mask; or an (I, J, K) bool array in the order of `volume.data`.
    network : finds the brain of a whole head, (I, J, K) bool; auto prefers it to the template's mask.
    Raises Refused where a gate fails, other ScanErrors where a step finds nothing to work on, UsageError
    where niimath is missing.
    """
    seconds: dict[str, float] = {}
    volume, missing, part, verdicts = _checked(volume)
    with _timed(seconds, "mask"):
        known, how = _known_mask(volume, brain_mask, network)
    start = _within(volume.data, known) if known is not None else volume.data
    with _timed(seconds, "registration"):
        affine, found, seen = registered(start, volume.affine, template, threads, bare=known is not None)
        checks = gates.of_registration(volume, affine, found, seen, template, part)
    verdicts = _passed(verdicts + checks)
    with _timed(seconds, "mask"):
        if known is not None:
            mask = known
        else:
            mask = propagated_mask(volume.data, volume.affine, affine, template, seen)
        if not mask.any():
            raise NoBrain("no brain was found in this scan.", "Give a mask:  --brain-mask FILE")
    flags: tuple[str, ...] = ()
    if missing is not None:
        whole = _with_holes(mask, missing, how in ("template", "network"), volume.affine, affine, template)
        flags = missing_flags(missing, whole, volume.affine)
    box = _with_margin(bounding_box(mask), mask.shape)
    with _timed(seconds, "n4"):
        brain = _without_field(volume.data, mask, box, volume.affine)
    at = points(mask[::4, ::4, ::4], volume.affine @ np.diag([4.0, 4.0, 4.0, 1.0]))
    with _timed(seconds, "registration"):
        again = refined_pose(brain, volume.affine, affine, template, bare=True)
        apart, affine = mean_distance(affine, again, at) if known is None else None, again
    with _timed(seconds, "resampling"):
        pose = affine if dof == 12 else rigid_pose(affine, template.centre_mm)
        template_mask = _mask_through(mask, box, pose @ volume.affine, template)
        grid = template.mask.shape, template.affine
        template_brain = np.maximum(resample(brain, pose @ volume.affine, *grid, template_mask), 0)
        through = affine @ volume.affine
        fitted = template_mask if dof == 12 else _mask_through(mask, box, through, template)
    cm3 = volume_cm3(mask, volume.affine)
    outline = 2 * float((fitted & template.mask).sum()) / float(fitted.sum() + template.mask.sum())
    checks = gates.of_brain(cm3, outline, _within_grid(at, pose, template), apart)
    return PreparedHead(
        brain, mask, how, pose, dof, template_brain, template_mask, found,
        _passed(verdicts + checks), seconds, volume.affine, flags,
    )  # fmt: skip


def _checked(volume: Volume) -> tuple[Volume, Mask | None, View, tuple[gates.Verdict, ...]]:
    """(the scan with air at 0, which of its voxels hold no number, its view, the gates of a scan)."""
    air = air_of_volume(volume)
    # Ringing is no Hounsfield unit. A scan whose air lies amid its intensities can be a CT in a blank frame.
    as_scanned = with_air_lowest(volume, air) if air.lies == "ringing" and air.certain else volume
    zeroed = with_air_zero(volume, air)
    part = view_of(zeroed.data, zeroed.affine)
    verdicts = gates.of_scan(as_scanned, part if as_scanned is zeroed else None)
    return zeroed, volume.missing, part, _passed(verdicts)


def _known_mask(
    volume: Volume, choice: MaskChoice | Mask, network: FindBrain | None
) -> tuple[Mask | None, str]:
    """(the mask where it does not take the registration to know it, its origin)."""
    if isinstance(choice, np.ndarray):
        if choice.shape != volume.data.shape:
            raise GridMismatch(
                f"the brain mask is {choice.shape} voxels and the scan {volume.data.shape}.",
                "Give a mask on the scan's own grid.",
            )
        return choice.astype(bool), "file"
    if choice == "none":
        return filled(volume.data > foreground_threshold(volume.data)), "none"
    found = stripped(volume.data, volume.affine) if choice == "auto" else None
    if found is not None:
        return found, "stripped"
    if choice == "auto" and network is not None:
        return network(volume), "network"
    return None, "template"


def _with_holes(mask: Mask, missing: Mask, head: bool, affine: F64, pose: F64, template: Template) -> Mask:
    """The brain with the holes that missing voxels leave in it; of a head also what the template's covers."""
    if not head:
        return around_holes(mask, missing, affine)
    inner = eroded(template.mask, INNER).astype(np.float32)
    back = np.linalg.inv(pose) @ template.affine
    covered: Mask = resample(inner, back, mask.shape, affine) > 0.5
    return mask | covered


def _within(data: F32, mask: Mask) -> F32:
    """The scan in the mask and zero outside."""
    return np.asarray(np.where(mask, data, 0), np.float32, order="F")


def _without_field(data: F32, mask: Mask, box: Box, affine: F64) -> F32:
    """The scan in the mask, N4 on the box around it, and zero outside."""
    brain = corrected(_within(data[box], mask[box]), _begun_at(box, affine))
    out = np.zeros(data.shape, np.float32, order="F")
    out[box] = brain
    return out


def _with_margin(box: Box, shape: tuple[int, ...]) -> Box:
    x, y, z = (
        slice(max(0, part.start - MARGIN), min(size, part.stop + MARGIN))
        for part, size in zip(box, shape, strict=True)
    )
    return x, y, z


def _begun_at(box: Box, affine: F64) -> F64:
    """The affine, (4, 4) voxel to world mm, of what lies in a box of a volume with `affine`."""
    boxed = affine.copy()
    boxed[:3, 3] = affine[:3, :3] @ [part.start for part in box] + affine[:3, 3]
    return boxed


def _mask_through(mask: Mask, box: Box, affine: F64, template: Template) -> Mask:
    """A mask, all of it in `box`, with `affine`, (4, 4) voxel to template's world, on the template's grid."""
    grid = template.mask.shape, template.affine
    near = near_box(mask[box].shape, _begun_at(box, affine), *grid)
    part: Mask = resample(mask, affine, *grid, near) > 0.5
    return part


def _within_grid(at: F64, pose: F64, template: Template) -> float:
    """Share of points (n, 3) in the scan's world that fall on the template's grid."""
    to_grid = np.linalg.inv(template.affine) @ pose
    index = at @ to_grid[:3, :3].T + to_grid[:3, 3]
    inside = (index > -0.5) & (index < np.array(template.mask.shape) - 0.5)
    return float(inside.all(axis=1).mean()) if len(at) else 0.0


def _passed(verdicts: tuple[gates.Verdict, ...]) -> tuple[gates.Verdict, ...]:
    if not all(v.passed for v in verdicts):
        raise gates.Refused(verdicts)
    return verdicts


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - started
