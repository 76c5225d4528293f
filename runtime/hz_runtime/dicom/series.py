"""Series: a stack of slices of one SeriesInstanceUID, in order, and where they lie.

Which images make a stack is for `stacks`; which stack is a T1-weighted head for `selection`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hz_runtime.dicom.deidentify import need, number, quiet
from hz_runtime.dicom.planes import Plane, Slice, numbers, read_planes
from hz_runtime.dicom.stacks import INTERLEAVED, find_stacks, interleaved
from hz_runtime.errors import UnsupportedScan
from hz_runtime.io.geometry import Array

MR_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.4": "MR Image",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR Image",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR Image",
}
_EVEN_MM = 0.02  # how far a slice may lie from its place, beside 1 % of the spacing
_SHEAR = 0.01  # sine of the largest angle between slice normal and stacking direction: 0.6 degrees


@dataclass(frozen=True, eq=False)
class Series:
    """A stack of parallel planes, sorted along their normal.

    number : its place in the list, from 1.  part : 0, or from 1 where its UID gave several stacks.
    head : pydicom Dataset of one file, without pixels; of a multi-frame file the first frame's functional
        groups are merged into it, so that keywords are those of a single-frame file. It holds identity.
    affine : (4, 4) float64, (column, row, slice) -> RAS mm; None where `fault` says why there is none.
    shape : (columns, rows, slices).
    """

    number: int
    uid: str
    study_uid: str
    part: int
    slices: tuple[Slice, ...]
    head: Any
    shape: tuple[int, int, int]
    affine: Array | None
    fault: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files, each once, in slice order."""
        return tuple(dict.fromkeys(s.path for s in self.slices))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(column, row, slice) mm; zeros where there is no affine."""
        if self.affine is None:
            return 0.0, 0.0, 0.0
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    def placed(self) -> Array:
        """`affine`. Raises UnsupportedScan, with the fault, where there is none."""
        if self.affine is None:
            raise UnsupportedScan(
                f"series {self.number} is not one volume: {self.fault}.",
                "Pick another one:  hz-dicom list IN",
            )
        return self.affine

    def get(self, keyword: str) -> Any:
        """An element's value in `head`, or None."""
        return self.head.get(keyword)


def find_series(files: Iterable[str | os.PathLike[str]]) -> tuple[Series, ...]:
    """The stacks in DICOM files, ordered by series number.

    Files that are no images, cannot be parsed or repeat an image are left out. Reads no pixels.
    Raises UsageError where pydicom is not installed.
    """
    need("pydicom")
    with quiet():
        return series_of(plane for path in files for plane in read_planes(Path(path)))


def series_of(planes: Iterable[Plane]) -> tuple[Series, ...]:
    """The stacks in the planes of DICOM files, as of `find_series`."""
    by_uid: dict[str, list[Plane]] = {}
    seen: set[tuple[str, int | None]] = set()
    for plane in planes:
        known = plane.slice.sop_uid, plane.slice.frame
        if known not in seen:
            seen.add(known)
            by_uid.setdefault(plane.uid, []).append(plane)
    found = [stack for of_uid in by_uid.values() for stack in _ordered(find_stacks(of_uid))]
    found.sort(key=lambda item: (item[2], item[0][0].uid, item[1]))
    return tuple(
        _placed_series(number, part, stack, fault) for number, (stack, part, _, fault) in enumerate(found, 1)
    )


def _ordered(stacks: Sequence[list[Plane]]) -> list[tuple[list[Plane], int, float, str]]:
    """(planes, part, series number, fault) of the stacks of one SeriesInstanceUID, ordered by kind.

    The order does not hang on that of the files.
    """
    parts = sorted(stacks, key=lambda stack: min(_order(plane) for plane in stack))
    amid = interleaved(parts)
    return [
        (
            stack,
            part if len(parts) > 1 else 0,
            number(stack[0].head.get("SeriesNumber")) or 0.0,
            INTERLEAVED if part - 1 in amid else "",
        )
        for part, stack in enumerate(parts, 1)
    ]


def _order(plane: Plane) -> tuple[str, ...]:
    orientation = None if plane.orientation is None else tuple(round(x, 3) + 0.0 for x in plane.orientation)
    return tuple(
        map(
            str,
            (plane.image_type, plane.echo, plane.inversion, plane.component, *plane.size, orientation),
        )
    )


def _placed_series(place: int, part: int, planes: Sequence[Plane], fault: str) -> Series:
    head = _usual(planes).head
    columns, rows = (int(number(head.get(n)) or 0) for n in ("Columns", "Rows"))
    affine, slices = None, [p.slice for p in planes]
    spacing = numbers(head.get("PixelSpacing"), 2)
    orientations = [p.orientation for p in planes if p.orientation is not None]
    if fault:
        pass
    elif len({number(p.head.get("PixelRepresentation")) for p in planes}) > 1:
        # dcm2niix 1.0.20260724 reads all of them as it reads the first: -10 becomes 65526.
        fault = "some of its images store signed numbers and others unsigned ones"
    elif number(head.get("PixelRepresentation")) == 1 and number(head.get("BitsAllocated")) == 8:
        # Against PS3.3 C.8.3.1.1.4 for classic MR; that dcm2niix takes -100 for 156.
        fault = "its images store signed bytes, which dcm2niix reads as unsigned ones"
    elif not orientations or spacing is None or min(spacing) <= 0:
        fault = "its images do not say where they lie"
    else:
        # Of one stack they agree but for their rounding; the mean takes the rounding of their text out.
        directions = np.mean(orientations, axis=0).reshape(2, 3)
        slices, affine, fault = _placed(slices, directions, spacing)
    return Series(
        place,
        str(head.SeriesInstanceUID),
        str(head.get("StudyInstanceUID") or ""),
        part,
        tuple(slices),
        head,
        (columns, rows, len(slices)),
        affine,
        fault,
    )


def _usual(planes: Sequence[Plane]) -> Plane:
    """The first plane of the commonest kind: what one odd image says is not what the stack is."""

    def kind(plane: Plane) -> tuple[object, ...]:
        return plane.image_type, plane.echo, plane.inversion

    usual, _ = Counter(map(kind, planes)).most_common(1)[0]
    return next(plane for plane in planes if kind(plane) == usual)


def _placed(
    slices: list[Slice], directions: Array, spacing: tuple[float, ...]
) -> tuple[list[Slice], Array | None, str]:
    """Sorted slices, affine and fault. directions : (2, 3), along a row, then along a column, LPS."""
    lengths = np.linalg.norm(directions, axis=1)
    if abs(lengths - 1).max() > 0.01 or abs(directions[0] @ directions[1]) > 0.01:
        return slices, None, "its image directions are not at right angles"
    along_row, along_column = directions / lengths[:, None]
    normal = np.cross(along_row, along_column)
    positions = np.array([s.position for s in slices])  # (K, 3)
    if not np.isfinite(positions).all():
        return slices, None, "its images do not say where they lie"
    if len(slices) < 2:
        return slices, None, "a single image"
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    slices, positions, depth = [slices[n] for n in order], positions[order], depth[order]
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    gaps = np.diff(depth)
    allowed = _EVEN_MM + 0.01 * float(np.median(gaps))
    if gaps.min() < 1e-3:
        return slices, None, "several images lie at one place (repeats, time points or b-values)"
    even = positions[0] + np.arange(len(slices))[:, None] * step
    if not abs(positions - even).max() <= allowed:  # nan, too, of absurd positions
        return slices, None, "slices are missing or unevenly spaced"
    if np.linalg.norm(np.cross(step / np.linalg.norm(step), normal)) > _SHEAR:
        return slices, None, "its slices are stacked aslant (gantry tilt)"
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * spacing[1], along_column * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return slices, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, ""  # LPS to RAS
