"""The picture of one scan as it is kept: strips of mid-slices, histograms, and small copies of both volumes.

A `Figure` is small (half a megabyte as JSON), deterministic on one machine, and holds finished PNG strips:
sagittal | coronal | axial, side by side at one scale, superior (or anterior) up. How it is drawn, `drawing`
says.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any

from hz_runtime.errors import HzError
from hz_runtime.report.png import png_size
from hz_runtime.report.thumbnail import check as check_small

BINS = 64
MAX_PIXELS = 155
"""Longest side of one slice: 500 scans must still make a page that a browser opens."""

_FORMAT = "hz-figure"
_VERSION = 2
_MAX_BYTES = 4 * 2**20
_FULL = (0.0, 1.0)  # window of the harmonized side in figures that do not say it, of earlier runs
_SMALL = ("small_before", "small_after", "blocks_before", "blocks_after")


@dataclass(frozen=True)
class Figure:
    """The pictures and histograms of one scan.

    before, after, difference : PNG bytes, one strip of three slices each, all of one size.
    histogram_before, histogram_after : 64 counts of brain voxels over [0, 1] (raw values are
        min-max scaled as the network saw them; larger scans are counted on a regular subsample).
    centre_mm : world coordinates (mm) that all three slices pass through.
    window, window_after : raw and harmonized intensities drawn as black and as white (1st and 99.5th
        percentile of the brain).
    mean_change : mean |after - before| over the counted brain voxels, in [0, 1] units.
    space : "native" (full resolution) or "model" (the network's grid).
    small_before, small_after : gzipped NIfTI at about 2 mm, both scaled 0 to 1, see `thumbnail`; empty
        where they were left out.
    row : PNG of `row_picture`, where it was drawn before the small volumes were left out; in no file.
    blocks_before, blocks_after : 8 x 8 x 8 block means of the network's grid, see `thumbnail.blocks`.
    """

    before: bytes
    after: bytes
    difference: bytes
    histogram_before: tuple[int, ...]
    histogram_after: tuple[int, ...]
    centre_mm: tuple[float, float, float]
    window: tuple[float, float]
    mean_change: float
    space: str
    small_before: bytes
    small_after: bytes
    blocks_before: bytes
    blocks_after: bytes
    window_after: tuple[float, float] = _FULL
    row: bytes = b""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the strips in pixels."""
        return png_size(self.before)

    def to_bytes(self) -> bytes:
        """JSON with sorted keys and base64 PNGs; the same figure gives the same bytes."""
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "before": base64.b64encode(self.before).decode(),
            "after": base64.b64encode(self.after).decode(),
            "difference": base64.b64encode(self.difference).decode(),
            "histogram_before": self.histogram_before,
            "histogram_after": self.histogram_after,
            "centre_mm": self.centre_mm,
            "window": self.window,
            "window_after": self.window_after,
            "mean_change": self.mean_change,
            "space": self.space,
            **{name: base64.b64encode(getattr(self, name)).decode() for name in _SMALL},
        }
        return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Figure:
        """Read what `to_bytes` wrote. Raises HzError when it is anything else."""
        try:
            if len(data) > _MAX_BYTES:
                raise ValueError("too large")
            return _from_record(json.loads(data))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError, binascii.Error) as error:
            raise HzError(
                f"Not a figure that hz wrote, or a damaged one ({error}).",
                "Delete it and run again with --overwrite.",
            ) from error


def _from_record(record: Any) -> Figure:
    if record["format"] != _FORMAT or record["version"] != _VERSION:
        raise ValueError("unknown format or version")
    strips = [base64.b64decode(record[key], validate=True) for key in ("before", "after", "difference")]
    sizes = {png_size(strip) for strip in strips}
    if len(sizes) != 1 or not all(0 < side <= 8 * MAX_PIXELS for side in next(iter(sizes))):
        raise ValueError("pictures of unequal or absurd size")
    counts = [tuple(int(n) for n in record[key]) for key in ("histogram_before", "histogram_after")]
    if any(len(c) != BINS or min(c) < 0 for c in counts):
        raise ValueError("bad histogram")
    windows = (*record["window"], *record.get("window_after", _FULL))
    numbers = [float(x) for x in (*record["centre_mm"], *windows, record["mean_change"])]
    if len(numbers) != 8 or not all(math.isfinite(x) for x in numbers):
        raise ValueError("bad numbers")
    x, y, z, black, white, black_after, white_after, change = numbers
    space = str(record["space"])
    if space not in ("native", "model"):
        raise ValueError("unknown space")
    before, after, difference = strips
    small = [base64.b64decode(record[name], validate=True) for name in _SMALL]
    for volume, means in zip(small[:2], small[2:], strict=True):
        check_small(volume, means)
    return Figure(
        before=before,
        after=after,
        difference=difference,
        histogram_before=counts[0],
        histogram_after=counts[1],
        centre_mm=(x, y, z),
        window=(black, white),
        mean_change=change,
        space=space,
        window_after=(black_after, white_after),
        **dict(zip(_SMALL, small, strict=True)),
    )
