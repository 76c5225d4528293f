"""A scan's picture in the table of scans: one axial slice, before | after.

It is cut from the figure's small volumes, so that figures hold nothing for it. A page of many scans must stay
small: the picture is as large as tells at a glance a scan that went wrong, and no larger.
"""

from __future__ import annotations

import numpy as np

from hz_runtime.errors import HzError
from hz_runtime.report.figure import Figure
from hz_runtime.report.png import encode_png
from hz_runtime.report.strips import gray, resize, upright
from hz_runtime.report.thumbnail import axial_slice

HEIGHT = 72  # pixels
_MOST_WIDE = 4  # times the height, of both slices together
_COARSE = 0xF8  # 5 bits of grey: a step is hardly seen at this size, and the file is half as large
_GAP = 2


def row_picture(figure: Figure) -> bytes:
    """PNG of the axial slices before and after, side by side; empty where the figure has no small volumes, or
    damaged ones. The same figure gives the same bytes on one machine."""
    if figure.row or not figure.small_before or not figure.small_after:
        return figure.row
    sides = []
    try:
        for volume in (figure.small_before, figure.small_after):
            cut, mm, (black, white) = axial_slice(volume, figure.centre_mm)
            pixel = cut.shape[1] * mm[1] / HEIGHT
            if cut.shape[0] * mm[0] / pixel > _MOST_WIDE / 2 * HEIGHT:
                return b""
            sides.append(gray(upright(resize(cut, list(mm), pixel), 2), black, max(white, black + 1e-6)))
    except HzError:
        return b""
    height = max(side.shape[0] for side in sides)
    sides = [np.pad(side, ((0, height - side.shape[0]), (0, 0))) & np.uint8(_COARSE) for side in sides]
    return encode_png(np.concatenate([sides[0], np.full((height, _GAP), 128, np.uint8), sides[1]], axis=1))
