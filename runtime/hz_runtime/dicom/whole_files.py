"""Whether DICOM files are whole: their headers can be read, and the pixels of MR images are all there.

Nothing is decoded. A file is named by its place among the others and by what it says of its place in its
series: its own name may be a patient's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hz_runtime.dicom.deidentify import need, number, quiet
from hz_runtime.dicom.planes import Deflated, Plane, opened, planes_of
from hz_runtime.dicom.series import MR_CLASSES, Series, series_of
from hz_runtime.errors import UnreadableScan

_MOST_NAMED = 8  # damaged files, in one line
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OW", b"UN"))  # VRs whose length has four bytes behind two
_PIXELS = (0x7FE0, 0x0010)
_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory: the DICOMDIR of a disc (PS3.10 8.6)
_ITEM, _END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)


@dataclass(frozen=True)
class Damage:
    """A file that is not whole.

    uid : of its series, "" where it cannot be read.  said : which file it is and what is wrong, for people.
    """

    uid: str
    said: str


def find_whole(files: Sequence[Path]) -> tuple[tuple[Series, ...], list[Damage]]:
    """(the stacks in DICOM files, as of `find_series`; the files that are cut short or cannot be read, in
    their order). A deflated file, which hz never inflates, is neither.

    Raises UsageError where pydicom is not installed.
    """
    need("pydicom")
    damage: list[Damage] = []
    planes: list[Plane] = []
    with quiet():
        for place, path in enumerate(files, 1):
            uid, image, wrong, found = _read(path)
            planes += found
            if wrong:
                which = f"file {place} of {len(files)} in the order of their names"
                damage.append(
                    Damage(uid, f"{which}{f' (image {image:g})' if image is not None else ''} {wrong}")
                )
        return series_of(planes), damage


def check_whole(series: Series, damage: Sequence[Damage], alone: bool = True) -> None:
    """Raise UnreadableScan where some of the damaged files are a part of `series`, or may be.

    alone : whether all files are of one study: of one that cannot be read at all nobody knows its series.
    """
    if own := [found for found in damage if found.uid == series.uid or (alone and not found.uid)]:
        raise damaged(own)


def damaged(damage: Sequence[Damage]) -> UnreadableScan:
    """What to say of damaged files."""
    said = [found.said for found in damage[:_MOST_NAMED]]
    said += [f"and {len(damage) - _MOST_NAMED} more"] if len(damage) > _MOST_NAMED else []
    return UnreadableScan(f"{'; '.join(said)}.", "Send the series again.")


def _read(path: Path) -> tuple[str, float | None, str, list[Plane]]:
    """(series, instance number, what is wrong or "", the file's images)."""
    damaged = "", None, "cannot be read: it is damaged"
    try:
        with opened(path) as (data, file, size):
            try:
                judged = _judged(data, file, size)
            except Exception:  # whatever a damaged value makes pydicom raise
                judged = damaged
            return *judged, planes_of(path, data)
    except OSError as error:
        return "", None, f"cannot be opened ({error.strerror or type(error).__name__})", []
    except Deflated:
        return "", None, "", []
    except Exception:  # whatever its parsing meets
        return *damaged, []


def _judged(data: Any, file: BinaryIO, size: int) -> tuple[str, float | None, str]:
    """(series, instance number, what is wrong or "") of what is `opened` of a file."""
    uid, image = str(data.get("SeriesInstanceUID") or ""), number(data.get("InstanceNumber"))
    if not uid:  # every object has one but a disc's table of contents
        contents = data.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY
        return "", image, "" if contents else "cannot be read: it ends within its header, or is damaged"
    if data.get("SOPClassUID") not in MR_CLASSES:  # no head; spectra and maps have no pixels, or others
        return uid, image, ""
    implicit, little = data.original_encoding
    return uid, image, _missing(file, size, data, "<" if little else ">", bool(implicit))


def _missing(file: BinaryIO, size: int, data: Any, order: str, implicit: bool) -> str:
    """What is missing of the pixels, at whose element the file stands."""
    head = file.read(12)
    if len(head) < 12 or struct.unpack(f"{order}HH", head[:4]) != _PIXELS:
        return "is cut short: it ends before its pixels"
    if implicit or head[4:6] not in _LONG:
        file.seek(-4, os.SEEK_CUR)
        (length,) = struct.unpack(f"{order}I" if implicit else f"{order}2xH", head[4:8])
    else:
        (length,) = struct.unpack(f"{order}I", head[8:12])
    if length == _UNDEFINED:
        return "" if _ends(file, size, order) else "is cut short: its compressed pixels do not end"
    there = min(length, size - file.tell())
    factors = [number(data.get(name)) for name in ("Rows", "Columns", "BitsAllocated")]
    more = (number(data.get(name)) or 1 for name in ("SamplesPerPixel", "NumberOfFrames"))
    wanted = int(_product([factor or 0 for factor in factors]) * _product(list(more)) / 8)
    if there < max(length, wanted):
        return f"is cut short: {there} of {max(length, wanted)} bytes of its pixels"
    return ""


def _product(values: Sequence[float]) -> float:
    product = 1.0
    for value in values:
        product *= value
    return product


def _ends(file: BinaryIO, size: int, order: str) -> bool:
    """Whether the fragments of compressed pixels reach their end within the file."""
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack(f"{order}HHI", head)
        if (group, element) == _END:
            return True
        if (group, element) != _ITEM or file.tell() + length > size:
            return False
        file.seek(length, os.SEEK_CUR)
    return False
