"""Multi-frame files: a copy whose frames stand in the order of the slices, for dcm2niix.

dcm2niix 1.0.20260724 gives a file's frames the geometry of their places, but sorts the frames themselves by
what differs from maker to maker, and compressed ones not at all. Where these orders differ, a head is
mirrored or its slices are shuffled (findings/dcm2niix_frame_order.sh). In a file whose frames, numbers and
places all run one way nothing is left to sort. Frames are moved here, never decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hz_runtime.dicom.deidentify import quiet
from hz_runtime.dicom.planes import Slice
from hz_runtime.errors import UnreadableScan

_IN_STACK_POSITION, _FRAME_CONTENT = 0x00209057, 0x00209111
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")


def write_in_order(path: Path, slices: Sequence[Slice], target: Path) -> None:
    """Copy a multi-frame file with the frames of these slices, one after another, and no others.

    path : the file; the slices are frames of it.  target : a new file.
    Raises UnreadableScan where its pixels do not hold as many frames as it says.
    """
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    numbers = [int(s.frame or 1) - 1 for s in slices]
    with quiet():
        try:
            data = dcmread(path, force=True)
            groups = list(data.PerFrameFunctionalGroupsSequence)
            data.PixelData = _pixels(data, len(groups), numbers)
        except Exception as error:  # whatever pydicom meets in damaged files
            raise UnreadableScan(
                "a multi-frame file does not hold the frames that it names.",
                "Export the series again, whole.",
            ) from error
        for place, number in enumerate(numbers, 1):
            content = (groups[number].get("FrameContentSequence") or [Dataset()])[0]
            content.InStackPositionNumber, content.DimensionIndexValues = place, [place]
            groups[number].FrameContentSequence = [content]
        pointer = Dataset()
        pointer.DimensionIndexPointer, pointer.FunctionalGroupPointer = _IN_STACK_POSITION, _FRAME_CONTENT
        data.DimensionIndexSequence = [pointer]
        data.PerFrameFunctionalGroupsSequence = [groups[n] for n in numbers]
        data.NumberOfFrames = len(numbers)
        implicit, little = data.original_encoding
        named = "TransferSyntaxUID" in data.file_meta
        encoding: dict[str, Any] = {} if named else {"implicit_vr": implicit, "little_endian": little}
        data.save_as(target, **encoding)


def _pixels(data: Any, count: int, numbers: Sequence[int]) -> bytes:
    """PixelData of the frames `numbers`, from 0, of `count`. Raises ValueError where some are missing."""
    from pydicom.encaps import encapsulate, generate_frames

    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated:
        tables = [data.get(name) for name in _OFFSETS]
        extended = (tables[0], tables[1]) if all(tables) else None
        stored = list(generate_frames(data.PixelData, number_of_frames=count, extended_offsets=extended))
        if len(stored) != count:
            raise ValueError("frames are missing")
        for name in _OFFSETS:  # of the former order
            data.pop(name, None)
        return bytes(encapsulate([stored[n] for n in numbers]))
    size = int(data.Rows) * int(data.Columns) * int(data.SamplesPerPixel) * int(data.BitsAllocated) // 8
    if len(data.PixelData) < size * count:
        raise ValueError("frames are missing")
    return b"".join(data.PixelData[n * size : (n + 1) * size] for n in numbers)
