"""What one image says of its series: whether it may be a T1-weighted head, and how many images there are.

It spares fetching what the rules would refuse anyhow, and answering a half of a series as if it were whole.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hz_runtime.dicom.deidentify import number, quiet
from hz_runtime.dicom.selection import judge
from hz_runtime.dicom.series import find_series

_PHILIPS_SLICES = (0x2001, 0x1018)  # of a volume; a private element of "Philips Imaging DD 001"


def refused_by(path: Path) -> str:
    """Why the rules refuse a series with this image, whatever its other images are; "" where they may not."""
    found = find_series([path])
    if not found:
        return "no image"
    verdict = judge(found[0])
    alone = found[0].fault == "a single image" and verdict.refused == found[0].fault
    if verdict.refused and not alone:
        return verdict.refused
    return "" if verdict.weighting else replace(verdict, refused="").reason


def announced(path: Path) -> int:
    """How many images the series is said to have; 0 where it says nothing, as most do."""
    from pydicom import dcmread

    with quiet():
        try:
            data: Any = dcmread(path, force=True, stop_before_pixels=True)
            if data.get("NumberOfFrames"):
                return 0
            said = [number(data.get(name)) for name in ("ImagesInAcquisition", "NumberOfSlices")]
            if _PHILIPS_SLICES in data:
                said.append(number(data[_PHILIPS_SLICES].value))
        except Exception:  # whatever a damaged value makes pydicom raise
            return 0
    return int(max((value for value in said if value is not None and 0 < value < 10**5), default=0))
