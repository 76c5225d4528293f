"""Planes: what single images of DICOM files say of themselves, read without pixels.

Classic single-frame MR and multi-frame (Enhanced MR) are both read. Which planes make a volume is for
`stacks`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hz_runtime.dicom.deidentify import listed, number, texts

_FRAMES_MAX = 20_000
_IN_MEMORY = 1 << 22  # bytes
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_TAGS = listed(
    "SpecificCharacterSet SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ImageType "
    "SeriesNumber SeriesDescription ProtocolName SequenceName PulseSequenceName Rows Columns "
    "NumberOfFrames ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness "
    "SpacingBetweenSlices MRAcquisitionType ScanningSequence SequenceVariant RepetitionTime EchoTime "
    "InversionTime FlipAngle MagneticFieldStrength ContrastBolusAgent BurnedInAnnotation Manufacturer "
    "ManufacturerModelName InstanceNumber BitsAllocated PixelRepresentation SamplesPerPixel "
    "PhotometricInterpretation ComplexImageComponent EchoPulseSequence ContrastBolusAgentSequence "
    "RescaleSlope RescaleIntercept SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)


@dataclass(frozen=True)
class Slice:
    """One image plane.

    path : its file.  frame : number of the frame in it, from 1, or None for a single-frame file.
    sop_class, sop_uid : of the file.  position : (x, y, z) mm, LPS, centre of its first pixel.
    scaling : its RescaleSlope and RescaleIntercept.  place : of a single-frame file, a pydicom Dataset of the
    elements PLACE as the file writes them.
    """

    path: Path
    frame: int | None
    sop_class: str
    sop_uid: str
    position: tuple[float, float, float]
    scaling: tuple[float, float] = (1.0, 0.0)
    place: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Plane:
    """One image with what its header says of itself.

    uid : of its series.  image_type : ImageType, upper case.  component : magnitude or phase, if it is said.
    echo, inversion : ms, None where they are not given.  size : rows, columns.
    orientation : six direction cosines, LPS, or None.  head : see `series.Series`.
    """

    uid: str
    image_type: tuple[str, ...]
    component: str
    echo: float | None
    inversion: float | None
    size: tuple[float | None, float | None]
    orientation: tuple[float, ...] | None
    slice: Slice
    head: Any


def read_planes(path: Path) -> list[Plane]:
    """The images of a DICOM file; none of a file that is no image or cannot be parsed."""
    try:
        with opened(path) as (data, _, _):
            return planes_of(path, data)
    except Exception:  # a file that only begins like DICOM; pydicom raises whatever its parsing meets
        return []


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, BinaryIO, int]]:
    """(what hz looks at of a DICOM file, a pydicom Dataset; the file, which stands at its pixels; its bytes).

    Raises OSError, Deflated, and whatever pydicom raises of a file that it cannot parse.
    """
    from pydicom import dcmread

    with open(path, "rb") as file:
        held = in_memory(file)
        bounded: Any = _Bounded(held)
        data = dcmread(bounded, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
        yield data, held, os.fstat(file.fileno()).st_size


def planes_of(path: Path, data: Any) -> list[Plane]:
    """The images of what is `opened` of a DICOM file, each of whose values is read now, or taken out."""
    try:
        return list(_planes(path, _decoded(data)))
    except Exception:  # pydicom raises whatever its parsing meets
        return []


def _planes(path: Path, data: Any) -> Iterator[Plane]:
    from pydicom.dataset import Dataset

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


def in_memory(file: BinaryIO) -> BinaryIO:
    """The content of a small file, from its start, or the file: pydicom asks for its place at every element,
    which is a call of the system where it is not memory."""
    return io.BytesIO(file.read()) if os.fstat(file.fileno()).st_size <= _IN_MEMORY else file


class Deflated(ValueError):
    """A DICOM file that is compressed as a whole."""


class _Bounded:
    """A file that is never read to its end at once, as pydicom does to inflate one: 20 MB could be 20 GB.

    So deflated files, which no scanner writes, count as files that cannot be parsed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int | None = None) -> bytes:
        if count is None or count < 0:
            raise Deflated
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
    "PixelValueTransformationSequence",
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


def _plane(path: Path, data: Any, frame: int | None, frames: int) -> Plane:
    position, orientation = (
        numbers(data.get(name), n)
        for name, n in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6))
    )
    if frame is None and frames > 1:
        position = None  # a multi-frame file that says nothing about its frames
    x, y, z = position or (float("nan"),) * 3
    slope, intercept = number(data.get("RescaleSlope")), number(data.get("RescaleIntercept"))
    scaling = (1.0 if slope is None else slope, intercept or 0.0)
    where = Slice(
        path, frame, str(data.get("SOPClassUID")), str(data.SOPInstanceUID), (x, y, z), scaling,
        None if frame is not None else _only(data, PLACE),
    )  # fmt: skip
    return Plane(
        uid=str(data.SeriesInstanceUID),
        image_type=texts(data.get("ImageType")),
        component=str(data.get("ComplexImageComponent") or ""),
        echo=number(data.get("EchoTime")),
        inversion=number(data.get("InversionTime")),
        size=(number(data.get("Rows")), number(data.get("Columns"))),
        orientation=orientation,
        slice=where,
        head=data,
    )


def _only(data: Any, keywords: Iterable[str]) -> Any:
    from pydicom.dataset import Dataset

    found = Dataset()
    for keyword in keywords:
        if keyword in data:
            found[keyword] = data[keyword]
    return found


def numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """The `count` finite numbers of an element, or None."""
    try:
        found = tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if len(found) == count and bool(np.isfinite(found).all()) else None
