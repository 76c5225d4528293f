"""Series: which slices belong together, in which order, and where they lie.

A series here is one stack: images of one SeriesInstanceUID that also agree in kind, echo, size and
direction, so that a series that interleaves two echoes is two stacks. Classic single-frame MR and multi-frame
(Enhanced MR) are both read. Nothing here decides which stack is a T1-weighted head; see `selection`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hz_runtime.dicom.deidentify import listed, need, number, quiet, texts
from hz_runtime.errors import UnsupportedScan
from hz_runtime.io.geometry import Array

MR_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.4": "MR Image",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR Image",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR Image",
}
_FRAMES_MAX = 20_000
_EVEN_MM = 0.02  # how far a slice may lie from its place, beside 1 % of the spacing
_SHEAR = 0.01  # sine of the largest angle between slice normal and stacking direction: 0.6 degrees
_TAGS = listed(
    "SpecificCharacterSet SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ImageType "
    "SeriesNumber SeriesDescription ProtocolName SequenceName PulseSequenceName Rows Columns "
    "NumberOfFrames ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness "
    "SpacingBetweenSlices MRAcquisitionType ScanningSequence SequenceVariant RepetitionTime EchoTime "
    "InversionTime FlipAngle MagneticFieldStrength ContrastBolusAgent BurnedInAnnotation Manufacturer "
    "ManufacturerModelName SamplesPerPixel PhotometricInterpretation ComplexImageComponent "
    "EchoPulseSequence ContrastBolusAgentSequence "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)


@dataclass(frozen=True)
class Slice:
    """One image plane.

    path : its file.  frame : number of the frame in it, from 1, or None for a single-frame file.
    sop_class, sop_uid : of the file.  position : (x, y, z) mm, LPS, centre of its first pixel.
    """

    path: Path
    frame: int | None
    sop_class: str
    sop_uid: str
    position: tuple[float, float, float]


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


@dataclass(frozen=True, eq=False)
class _Plane:
    key: tuple[Any, ...]
    slice: Slice
    orientation: tuple[float, ...] | None
    head: Any


def find_series(files: Iterable[str | os.PathLike[str]]) -> tuple[Series, ...]:
    """The stacks in DICOM files, ordered by series number.

    Files that are no images, cannot be parsed or repeat an image are left out. Reads no pixels.
    Raises UsageError where pydicom is not installed.
    """
    need("pydicom")
    planes: dict[tuple[Any, ...], list[_Plane]] = {}
    seen: set[tuple[str, int | None]] = set()
    with quiet():
        for path in files:
            for plane in _planes(Path(path)):
                known = plane.slice.sop_uid, plane.slice.frame
                if known not in seen:
                    seen.add(known)
                    planes.setdefault(plane.key, []).append(plane)
        return _numbered(planes)


def _numbered(planes: dict[tuple[Any, ...], list[_Plane]]) -> tuple[Series, ...]:
    def order(key: tuple[Any, ...]) -> tuple[Any, ...]:
        return (number(planes[key][0].head.get("SeriesNumber")) or 0.0, *map(str, key))

    parts: dict[str, int] = {}
    for key in planes:
        parts[key[0]] = parts.get(key[0], 0) + 1
    met: dict[str, int] = {}
    found = []
    for place, key in enumerate(sorted(planes, key=order), 1):
        met[key[0]] = met.get(key[0], 0) + 1
        part = met[key[0]] if parts[key[0]] > 1 else 0
        found.append(_stacked(place, part, planes[key]))
    return tuple(found)


def _planes(path: Path) -> Iterator[_Plane]:
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    try:
        with open(path, "rb") as file:
            bounded: Any = _Bounded(file)
            data = _decoded(dcmread(bounded, force=True, stop_before_pixels=True, specific_tags=list(_TAGS)))
        uid, columns = data.get("SeriesInstanceUID"), number(data.get("Columns"))
        if not uid or not data.get("SOPInstanceUID") or not columns:
            return
        frames = int(number(data.get("NumberOfFrames")) or 0)
        groups = data.get("PerFrameFunctionalGroupsSequence")
        if not groups:
            yield _plane(path, data, None, frames)
            return
        for index, group in enumerate(groups[:_FRAMES_MAX]):
            merged = Dataset()
            merged.update({e.tag: e for e in data if e.VR != "SQ"})
            for source in (*(data.get("SharedFunctionalGroupsSequence") or ()), group):
                _merge(source, merged)
            _translate(data, merged)
            yield _plane(path, merged, index + 1, frames)
    except Exception:  # a file that only begins like DICOM; pydicom raises whatever its parsing meets
        return


class _Bounded:
    """A file that is never read to its end at once, as pydicom does to inflate one: 20 MB could be 20 GB.

    So deflated files, which no scanner writes, count as files that cannot be parsed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.name, self.seek, self.tell = file.name, file.seek, file.tell

    def read(self, count: int | None = None) -> bytes:
        if count is None or count < 0:
            raise ValueError("deflated")
        return self._file.read(count)


# Enhanced MR's names for what single-frame files say (PS3.3 C.8.13.5).
_RENAMED = {
    "EffectiveEchoTime": "EchoTime",
    "InversionTimes": "InversionTime",
    "FrameType": "ImageType",
}
_KEPT_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "MRTimingAndRelatedParametersSequence",
    "MREchoSequence",
    "MRModifierSequence",
    "MRImageFrameTypeSequence",
    "FrameContentSequence",
)


def _merge(source: Any, into: Any) -> None:
    for keyword in _KEPT_GROUPS:
        for item in source.get(keyword) or ():
            for element in item:
                if element.VR != "SQ" and element.keyword:
                    name = _RENAMED.get(element.keyword, element.keyword)
                    if name in into:  # all frames share it: assigning to it would change them all
                        del into[name]
                    setattr(into, name, element.value)


def _translate(data: Any, into: Any) -> None:
    """What Enhanced MR says of its sequence (PS3.3 C.8.13.4, C.8.13.5.6), in the words of single-frame MR."""
    known = {"GRADIENT": ["GR"], "SPIN": ["SE"], "BOTH": ["GR", "SE"]}
    echoes = known.get(str(into.get("EchoPulseSequence")))
    if echoes and not into.get("ScanningSequence"):
        into.ScanningSequence = [*echoes, *(["IR"] if into.get("InversionRecovery") == "YES" else [])]
    if into.get("Spoiling") in ("RF", "RF_AND_GRADIENT") and not into.get("SequenceVariant"):
        into.SequenceVariant = "SP"
    if data.get("ContrastBolusAgentSequence") and not into.get("ContrastBolusAgent"):
        into.ContrastBolusAgent = "given"


def _decoded(data: Any) -> Any:
    """`data` with every value read now, where pydicom is kept quiet, and without those that cannot be."""
    for tag in list(data.keys()):
        try:
            data[tag]
        except Exception:  # whatever a damaged value makes pydicom raise
            del data[tag]
    return data


def _plane(path: Path, data: Any, frame: int | None, frames: int) -> _Plane:
    position, orientation = (
        _numbers(data.get(name), n)
        for name, n in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6))
    )
    if frame is None and frames > 1:
        position = None  # a multi-frame file that says nothing about its frames
    key = (
        str(data.SeriesInstanceUID),
        texts(data.get("ImageType")),
        number(data.get("EchoTime")),
        number(data.get("InversionTime")),
        str(data.get("ComplexImageComponent") or ""),
        number(data.get("Rows")),
        number(data.get("Columns")),
        None if orientation is None else tuple(round(x, 3) + 0.0 for x in orientation),
    )
    x, y, z = position or (float("nan"),) * 3
    where = Slice(path, frame, str(data.get("SOPClassUID")), str(data.SOPInstanceUID), (x, y, z))
    return _Plane(key, where, orientation, data)


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    try:
        found = tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if len(found) == count and bool(np.isfinite(found).all()) else None


def _stacked(place: int, part: int, planes: Sequence[_Plane]) -> Series:
    head = planes[0].head
    columns, rows = (int(number(head.get(n)) or 0) for n in ("Columns", "Rows"))
    affine, slices, fault = None, [p.slice for p in planes], ""
    spacing = _numbers(head.get("PixelSpacing"), 2)
    orientations = [p.orientation for p in planes if p.orientation is not None]
    if not orientations or spacing is None or min(spacing) <= 0:
        fault = "its images do not say where they lie"
    else:
        # Of one stack they agree to 3 decimals; the mean takes the rounding of their text out.
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
