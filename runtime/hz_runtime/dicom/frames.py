"""Compressed multi-frame files: a copy whose frames stand in the order of the slices, for dcm2niix.

dcm2niix 1.0.20260724 sorts the frames of a file by place where their pixels are plain. Where they are compressed it
takes them as they are stored, under the geometry of sorted ones, so that a head is mirrored or its slices are
shuffled (findings/dcm2niix_compressed_frames.sh). Frames are moved here, never decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hz_runtime.dicom.deidentify import quiet
from hz_runtime.dicom.planes import Slice
from hz_runtime.errors import UnreadableScan

_IN_STACK_POSITION, _FRAME_CONTENT = 0x00209057, 0x00209111


def compressed(path: Path) -> bool:
    """Whether the pixels of a DICOM file are encapsulated (PS3.5 A.4)."""
    from pydicom import dcmread

    with quiet():
        meta = dcmread(path, force=True, stop_before_pixels=True, specific_tags=[]).file_meta
        return bool(meta.get("TransferSyntaxUID") and meta.TransferSyntaxUID.is_encapsulated)


def write_in_order(path: Path, slices: Sequence[Slice], target: Path) -> None:
    """Copy a compressed multi-frame file with the frames of these slices, one after another.

    path : the file; the slices are frames of it.  target : a new file.
    Raises UnreadableScan where its pixels do not hold as many frames as it says.
    """
    from pydicom import dcmread
    from pydicom.dataset import Dataset
    from pydicom.encaps import encapsulate, generate_frames

    with quiet():
        numbers = [int(s.frame or 1) - 1 for s in slices]
        try:
            data = dcmread(path, force=True)
            groups = data.PerFrameFunctionalGroupsSequence
            stored = list(generate_frames(data.PixelData, number_of_frames=len(groups)))
        except Exception as error:  # whatever pydicom meets in damaged pixels
            raise _incomplete(len(numbers)) from error
        if len(stored) != len(groups):
            raise _incomplete(len(groups))
        data.PixelData = encapsulate([stored[n] for n in numbers])
        ordered = [groups[n] for n in numbers]
        for place, group in enumerate(ordered, 1):  # else they would be sorted by their former numbers
            content = (group.get("FrameContentSequence") or [Dataset()])[0]
            content.InStackPositionNumber, content.DimensionIndexValues = place, [place]
            group.FrameContentSequence = [content]
        pointer = Dataset()
        pointer.DimensionIndexPointer, pointer.FunctionalGroupPointer = _IN_STACK_POSITION, _FRAME_CONTENT
        data.DimensionIndexSequence = [pointer]
        data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = ordered, len(ordered)
        data.save_as(target)


def _incomplete(frames: int) -> UnreadableScan:
    return UnreadableScan(
        f"a compressed file does not hold the {frames} frames that it names.",
        "Export the series again, whole.",
    )
