"""Air: which intensity it has in a volume, and the volume with air as its lowest value.

All that is read from intensities (foreground, min-max, N4) takes a volume's lowest value for air. Many tools
leave scans of which that is not so: splines and sinc ring below it, a brain that was z-scored inside its mask
lies on both sides of it, SPM writes NaN for it. Here such scans are brought into the form of the others, once
and for every way that a scan can go; of a scan whose air is its lowest value nothing is changed.

Air is what fills the faces of the box. Which voxels are brain is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hz_runtime.io.volume import Volume
from hz_runtime.model_space.foreground import (
    LARGEST_BRAIN_CM3,
    LEAST_STRIPPED_AIR,
    every_second,
    volume_cm3,
)
from hz_runtime.model_space.morphology import filled
from hz_runtime.model_space.resample import bounding_box

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

MOST = 0.5  # of the faces of the box
# Shares of the bright end, which is the 98th percentile of what is not air.
NEAR = 0.02  # closer to air than any tissue
OFFSET = 0.1  # a lowest value above this is no dark tissue: the whole volume was shifted
STEP = 0.001  # from air to the darkest voxel of the brain
# Of what stands out from air, the share that lies below it. Splines and sinc: 0.06 at most in four scans on
# three grids each; the same scans, z-scored inside with air 0: 0.46 and more.
MOST_RINGING = 0.25
# Voxels near air and unlike it, for each that stands out. Stripped scans: 0.07 at most, once resampled by
# splines 0.85 and more.
LEAST_HALO = 0.3


@dataclass(frozen=True)
class Air:
    """What of a volume is air.

    level : its intensity.
    reach : what is within this of the level is air, too; 0 where air has one value.
    lies : where the level lies among the intensities: lowest, as in most scans; with ringing below it; or
        amid them, so that the brain is what differs from it.
    bright : 98th percentile of the distance from the level, of what has any.
    certain : whether it fills the faces of the box, so that it is no guess.
    """

    level: float
    reach: float
    lies: Literal["lowest", "ringing", "amid"]
    bright: float
    certain: bool


def with_air_lowest(volume: Volume, air: Air | None = None) -> Volume:
    """The volume, finite, with air as its lowest value; the same object where it is so already.

    air : of `air_of_volume`, where it is known.
    Ringing below air becomes air. A brain that lies on both sides of it is raised as a whole until its
    darkest voxel lies just above air, which becomes 0. Voxels without a number become air.
    """
    air = air or air_of_volume(volume)
    data, missing = volume.data, volume.missing
    if air.lies == "lowest" and missing is None:
        return volume
    if air.lies == "amid":
        data = _raised(data, missing, air)
    else:
        level = np.float32(air.level)
        if air.lies == "ringing":
            data = np.where(data > level + np.float32(air.reach), data, level)
        if missing is not None:
            data = np.where(missing, level, data)
    return replace(volume, data=np.asfortranarray(data, np.float32), missing=None)


def with_air_zero(volume: Volume, air: Air | None = None) -> Volume:
    """`with_air_lowest`, shifted so that air is 0, as whatever divides intensities needs it."""
    air = air or air_of_volume(volume)
    lowest = with_air_lowest(volume, air)
    if air.lies == "amid" or not air.level:
        return lowest
    return replace(lowest, data=np.maximum(lowest.data - np.float32(air.level), np.float32(0)))


def air_of_volume(volume: Volume) -> Air:
    """What of a volume is air: the value that fills the faces of the box of its numbers.

    Where no value does (a head in noise) it is 0, unless so much lies below 0, or everything so far above,
    that the intensities were shifted; then it is the lowest one.
    """
    data, known = volume.data, None if volume.missing is None else ~volume.missing
    shown, around = _faces(data, known)
    blank = shown.size < MOST * around  # what lies around holds no number: that is its air
    middle = (
        0.0 if blank or not shown.size else float(np.median(shown))
    )  # of more than half equal ones, theirs
    exact = not blank and float((shown == middle).mean()) > MOST
    level = middle if exact else 0.0
    lowest = float(data.min() if known is None else data.min(where=known, initial=np.inf))
    thin = every_second(data)
    if exact and lowest == level and _brain_sized(thin != level, volume):
        return Air(level, 0.0, "lowest", 0.0, True)  # the usual case, at no cost
    apart = (thin if known is None else thin[every_second(known)]) - np.float32(level)
    unlike = np.abs(apart[apart != 0])
    if not unlike.size:
        return Air(level, 0.0, "lowest", 0.0, exact)
    bright = float(np.percentile(unlike, 98))
    near = NEAR * bright
    standing = int(np.count_nonzero(unlike > near))
    below = int(np.count_nonzero(apart < -near)) / max(standing, 1)
    certain = exact or blank or float((np.abs(shown) <= near).mean()) > MOST
    shifted, both_sides = lowest > OFFSET * bright, below > MOST_RINGING
    if (blank and shifted) or (certain and both_sides):
        return Air(level, 0.0 if exact or blank else near, "amid", bright, True)
    if both_sides or (shifted and not exact):
        return Air(lowest, 0.0, "lowest", bright, False)
    halo = unlike.size - standing > LEAST_HALO * standing
    outstanding = np.abs(thin - np.float32(level)) > near
    reach = near if halo and _brain_sized(outstanding, volume) else 0.0
    # Of whole numbers a few may lie just below the most common one, which means nothing; a negative one does.
    rings = lowest < level - (near if level else 0.0)
    return Air(level, reach, "ringing" if rings or reach else "lowest", bright, certain)


def _faces(data: F32, known: Mask | None) -> tuple[F32, int]:
    """(the numbers on the six faces of the box that holds all numbers, how many voxels the faces have)."""
    box: Box = (slice(None),) * 3 if known is None else bounding_box(known)
    data = data[box]
    at = [(slice(None),) * axis + (end,) for axis in range(3) for end in (0, -1)]
    if known is None:
        shown = np.concatenate([data[face].ravel() for face in at])
        return shown, shown.size
    known = known[box]
    return np.concatenate([data[face][known[face]] for face in at]), sum(known[face].size for face in at)


def _brain_sized(thin: Mask, volume: Volume) -> bool:
    """Whether a mask of every second voxel holds no more than a brain, with air around it."""
    voxels = thin.size / volume.data.size
    cm3 = volume_cm3(thin, volume.affine) / voxels
    return bool(cm3 <= LARGEST_BRAIN_CM3 and thin.mean() <= 1 - LEAST_STRIPPED_AIR)


def _raised(data: F32, missing: Mask | None, air: Air) -> F32:
    """What differs from air, raised until all of it lies above 0; the rest is 0."""
    known = True if missing is None else ~missing
    unlike = (np.abs(data - np.float32(air.level)) > air.reach) & known
    box = bounding_box(unlike)
    inside = np.zeros(data.shape, np.bool_, order="F")
    inside[box] = filled(unlike[box])  # a voxel of the brain may have the value of air by chance
    inside &= known
    lowest = data.min(where=inside, initial=np.inf)
    return np.where(inside, data - lowest + np.float32(STEP * air.bright), np.float32(0))
