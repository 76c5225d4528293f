"""Stacks: which planes of one SeriesInstanceUID make a volume.

Scanners let more vary within a series than its geometry: a direction cosine in its sixth decimal, an echo
time in its third, NORM in the ImageType of all images but the first. None of that splits a stack here.
Numbers are compared within tolerances and not by cells, whose borders may run between two neighbours.

What splits: another size, another component (phase beside magnitude), another direction, echo or inversion,
and what the words of DISTINCT say. Any other word of the ImageType splits only where images would else lie on
each other: a scanner that sends a stack with its filter and one without.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from hz_runtime.dicom.deidentify import listed
from hz_runtime.dicom.planes import Plane

# Words of an ImageType that make another image, and not only another way to it (PS3.3 C.8.3.1.1.1).
DISTINCT = frozenset(
    listed(
        "PROJECTION MIP MINIP LOCALIZER SECONDARY MPR RESAMPLED REFORMATTED SUB P PHASE R REAL I IMAGINARY "
        "UNI INV1 INV2 ADC FA TRACEW DIFFUSION PERFUSION ASL CBF FMRI MOSAIC FM MAP"
    )
)
DIRECTION = 0.01  # of each direction cosine: half a degree
ECHO_MS, INVERSION_MS, RELATIVE = 0.1, 5.0, 0.01  # the larger of the two
SAME_PLACE_MM = 1e-2
INTERLEAVED = "its slices lie between those of another part of the same series"


def find_stacks(planes: Sequence[Plane]) -> list[list[Plane]]:
    """The stacks among planes of one series, each in the order of its planes."""
    found = []
    for kind in _by_key(planes, lambda p: (p.size, p.component, DISTINCT & {*p.image_type})):
        for direction in _by_direction(kind):
            for echo in _by_number(direction, lambda p: p.echo, ECHO_MS):
                for inversion in _by_number(echo, lambda p: p.inversion, INVERSION_MS):
                    found += _by_type(inversion)
    return found


def interleaved(stacks: Sequence[Sequence[Plane]]) -> set[int]:
    """Indices of the stacks whose slices lie between another one's: parts of one head, neither of them whole.

    Stacks with their slices at the same places are echoes of one another, and whole.
    """
    found: set[int] = set()
    depths = [_depths(stack) for stack in stacks]
    for one in range(len(stacks)):
        for other in range(one):
            if _alike(stacks[one], stacks[other]) and _amid(depths[one], depths[other]):
                found |= {one, other}
    return found


def _alike(one: Sequence[Plane], other: Sequence[Plane]) -> bool:
    a, b = one[0], other[0]
    same = a.size == b.size and a.component == b.component
    return same and DISTINCT & {*a.image_type} == DISTINCT & {*b.image_type} and _parallel(a, b)


def _amid(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether slices at these depths (mm, sorted) lie among the others and not on them."""
    if len(one) < 2 or len(other) < 2 or not np.isfinite([*one, *other]).all():
        return False
    if max(one[0], other[0]) >= min(one[-1], other[-1]):
        return False
    nearest = np.abs(one[:, None] - other[None, :]).min(axis=1)
    step = float(min(np.median(np.diff(one)), np.median(np.diff(other))))
    return bool((nearest > 0.1 * step).mean() > 0.5)


def _by_key(planes: Iterable[Plane], key: Callable[[Plane], Hashable]) -> list[list[Plane]]:
    groups: dict[Hashable, list[Plane]] = {}
    for plane in planes:
        groups.setdefault(key(plane), []).append(plane)
    return list(groups.values())


def _by_direction(planes: Iterable[Plane]) -> list[list[Plane]]:
    groups: list[list[Plane]] = []
    for plane in planes:
        group = next((g for g in groups if _parallel(g[0], plane)), None)
        if group is None:
            groups.append([plane])
        else:
            group.append(plane)
    return groups


def _parallel(one: Plane, other: Plane) -> bool:
    if one.orientation is None or other.orientation is None:
        return one.orientation is other.orientation
    return bool(np.abs(np.subtract(one.orientation, other.orientation)).max() <= DIRECTION)


def _by_number(
    planes: Sequence[Plane], value: Callable[[Plane], float | None], tolerance: float
) -> list[list[Plane]]:
    """Groups whose values lie further apart than the tolerance. Planes without one go with the others where
    these are one group, else by themselves."""
    values = sorted({v for plane in planes if (v := value(plane)) is not None})
    edges = [b for a, b in pairwise(values) if b - a > max(tolerance, RELATIVE * abs(a))]
    if not edges:
        return [list(planes)]

    def group(plane: Plane) -> int:
        mine = value(plane)
        return -1 if mine is None else sum(mine >= edge for edge in edges)

    return _by_key(planes, group)


def _by_type(planes: list[Plane]) -> list[list[Plane]]:
    """One stack, or one for each ImageType where images lie on each other and those of a type do not."""
    if _distinct(planes):
        return [planes]
    groups = _by_key(planes, lambda plane: plane.image_type)
    return groups if len(groups) > 1 and all(map(_distinct, groups)) else [planes]


def _distinct(planes: Sequence[Plane]) -> bool:
    """Whether every plane has a place of its own; those that do not say theirs are taken to."""
    depths = _depths(planes)
    return not np.isfinite(depths).all() or bool((np.diff(depths) > SAME_PLACE_MM).all())


def _depths(planes: Sequence[Plane]) -> np.ndarray:
    """(n,) mm along the normal, sorted; nan where a plane does not say where it lies."""
    orientation = planes[0].orientation
    if orientation is None:
        return np.full(len(planes), np.nan)
    normal = np.cross(orientation[:3], orientation[3:])
    return np.sort(np.array([plane.slice.position for plane in planes]) @ normal)
