"""The page for a reader: one picture that says what became of a head, for viewers that show nothing else.

Before, after and difference in three planes, the predicted age, gates and flags, and what it is not for, all
in the pixels, and as lines of text for formats that hold text. Coronal and axial slices are hung as
radiologists do, with the patient's left on the picture's right, and lettered. Nothing here knows DICOM or
whose head it is: `page_objects` makes objects of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.dicom.derived import RESEARCH
from hz_runtime.dicom.result import Result
from hz_runtime.errors import GridMismatch
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.image_quality import NOT_MEASURED
from hz_runtime.report.drawing import Rows, Sides, slices
from hz_runtime.report.gates import wanted
from hz_runtime.report.strips import DIFFERENCE_LIMIT, difference_palette
from hz_runtime.results.image_quality import quality_words

U8 = NDArray[np.uint8]
SIDE = 1024  # pixels, both ways

_MARGIN, _TILE, _STEP = 16, 226, 232
_BRAIN = _TILE - 28  # pixels of its longest side, so that letters stand beside it
_TOP, _ROW = 84, 254
_PANEL = _MARGIN + 3 * _STEP + 8
_BOTTOM = _TOP + 3 * _ROW + 6
_WHITE, _SOFT, _AMBER, _GREEN, _RED = (
    (240, 240, 240), (165, 165, 165), (255, 190, 70), (90, 200, 110), (245, 95, 85),
)  # fmt: skip
_ROW_NAMES = ("Before (as scanned)", "After (harmonized)", "Difference, field correction included")
_ENDS = (("A", "P"), ("R", "L"), ("R", "L"))  # of a sagittal, a coronal and an axial slice
_OVERFLOW_LINES = 44


@dataclass(frozen=True, eq=False)
class Page:
    """pixels : (1024, 1024, 3) uint8.  lines : what is written in them, from top to bottom."""

    pixels: U8
    lines: tuple[str, ...]


def draw_pages(before: Volume, after: Volume, result: Result, name: str) -> list[Page]:
    """The page of a result, and a second one where its flags do not fit on one.

    before, after : the scan and its harmonized copy, on one grid.  name : what the series is called; it is
    written on the page. Raises GridMismatch.
    """
    if before.data.shape != after.data.shape:
        raise GridMismatch("the scan and its harmonized copy have different sizes.", "Give the scan itself.")
    low, high = result.intensities or (float(np.nanmin(before.data)), float(np.nanmax(before.data)))
    rows = slices(Sides(before.data, after.data, before.affine, low, high, "native"), _BRAIN)
    first = _Canvas()
    _heading(first, name)
    _pictures(first, rows)
    _panel(first, result)
    rest = _flags(first, result)
    _made_by(first, result)
    pages = [first.page()]
    while rest:
        more = _Canvas()
        _heading(more, name)
        more.write(_MARGIN, _TOP, "Flags, continued", 20)
        more.column(_MARGIN, _TOP + 30, rest[:_OVERFLOW_LINES], 16, 20, _AMBER)
        rest = rest[_OVERFLOW_LINES:]
        pages.append(more.page())
    return pages


class _Canvas:
    """Black pixels to write on, in the Latin letters of a font that Pillow brings."""

    def __init__(self) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (SIDE, SIDE))
        self.draw = ImageDraw.Draw(self.image)
        self.lines: list[str] = []

    def write(
        self, x: int, y: int, text: str, size: int, colour: tuple[int, int, int] = _WHITE, said: bool = True
    ) -> None:
        """A line with its top left at (x, y).  said : whether it is one of the page's lines."""
        self.draw.text((x, y), text, fill=colour, font=_font(size))
        if said:
            self.lines.append(text)

    def column(
        self, x: int, y: int, lines: Iterable[str], size: int, step: int, colour: tuple[int, int, int]
    ) -> int:
        """Lines below one another; returns where the next one would be."""
        for line in lines:
            self.write(x, y, line, size, colour)
            y += step
        return y

    def paste(self, x: int, y: int, pixels: U8) -> None:
        from PIL import Image

        self.image.paste(Image.fromarray(pixels), (x, y))

    def page(self) -> Page:
        return Page(np.asarray(self.image, np.uint8), tuple(self.lines))


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels; a word that is wider is cut."""
    font, lines = _font(size), [""]
    most = max(1, int(width // font.getlength("W")))  # letters that fit in any case
    for word in text.encode("ascii", "replace").decode().split():
        while font.getlength(word) > width:
            lines += [word[:most]]
            word = word[most:]
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return [line for line in lines if line]


def _heading(canvas: _Canvas, name: str) -> None:
    canvas.write(_MARGIN, 10, "hz: harmonized T1-weighted head", 26)
    canvas.write(_PANEL, 16, name, 18, _SOFT)
    canvas.write(_MARGIN, 44, RESEARCH, 24, _AMBER)


def _pictures(canvas: _Canvas, rows: Rows) -> None:
    palette = difference_palette()
    for number, (tiles, title) in enumerate(
        zip((rows.before, rows.after, rows.difference), _ROW_NAMES, strict=True)
    ):
        top = _TOP + number * _ROW
        canvas.write(_MARGIN, top, title, 16, _SOFT)
        for axis, tile in enumerate(tiles):
            hung = tile if axis == 0 else tile[:, ::-1]
            coloured = palette[hung] if number == 2 else np.repeat(hung[:, :, None], 3, axis=2)
            _tile(canvas, _MARGIN + axis * _STEP, top + 24, coloured, _ENDS[axis])
    _legend(canvas, _MARGIN + 300, _TOP + 2 * _ROW)


def _tile(canvas: _Canvas, x: int, y: int, pixels: U8, ends: tuple[str, str]) -> None:
    height, width = pixels.shape[:2]
    canvas.paste(x + (_TILE - width) // 2, y + (_TILE - height) // 2, np.ascontiguousarray(pixels))
    for letter, at in zip(ends, (x + 2, x + _TILE - 14), strict=True):
        canvas.write(at, y + _TILE // 2 - 10, letter, 18, _AMBER, said=False)


def _legend(canvas: _Canvas, x: int, y: int) -> None:
    index = np.rint(np.linspace(1, 253, 160)).astype(np.intp)
    canvas.paste(x + 44, y + 4, np.repeat(difference_palette()[index][None], 12, axis=0))
    canvas.write(x, y, f"-{DIFFERENCE_LIMIT:g}", 16, _SOFT, said=False)
    canvas.write(x + 212, y, f"+{DIFFERENCE_LIMIT:g} of the full range", 16, _SOFT, said=False)


def _panel(canvas: _Canvas, result: Result) -> None:
    width = SIDE - _PANEL - 8
    canvas.write(_PANEL, _TOP, "Predicted brain age", 18, _SOFT)
    shown = None if result.age is None else result.age.prediction.age
    canvas.write(_PANEL, _TOP + 22, "none" if shown is None else f"{shown:.1f} years", 38)
    y = canvas.column(_PANEL, _TOP + 72, _about_age(result, width), 16, 20, _WHITE)
    y = canvas.column(_PANEL, y, _about_quality(result, width), 16, 20, _WHITE) + 10
    canvas.write(_PANEL, y, "Gates of the preparation", 18, _SOFT)
    y += 26
    if not result.gates:
        canvas.write(_PANEL, y, "none: given as a brain", 15, _WHITE)
    for gate in result.gates:
        passed = gate.get("passed") is True
        canvas.draw.ellipse((_PANEL, y + 3, _PANEL + 11, y + 14), fill=_GREEN if passed else _RED)
        canvas.write(_PANEL + 18, y, f"{gate.get('gate')}: {'passed' if passed else 'FAILED'}", 16)
        measured = " ".join(_wrapped(_measured(gate), 13, 10**6))
        canvas.column(_PANEL + 18, y + 19, _wrapped(measured, 13, width - 18)[:2], 13, 15, _SOFT)
        y += 21 + 15 * min(2, len(_wrapped(measured, 13, width - 18))) + 3


def _about_age(result: Result, width: int) -> list[str]:
    """What belongs to the age: its interval, and for whom it holds."""
    if result.age is None or result.age.prediction.age is None:
        return []
    lines = []
    if limits := result.age.prediction.age_interval:
        level = f"{result.age.coverage:.0%} interval" if result.age.coverage else "Interval"
        lines.append(f"{level}: {limits[0]:.1f} to {limits[1]:.1f}")
    else:
        lines.append("No interval: none was calibrated")
    if result.ages:
        lines.append(f"Network trained on {result.ages[0]:g} to {result.ages[1]:g} years")
    else:
        lines.append("Training ages: not known here")
    return [line for text in lines for line in _wrapped(text, 16, width)]


def _about_quality(result: Result, width: int) -> list[str]:
    """The verdict on the scan's noise, blur, ghosts and field."""
    words = quality_words(result.quality)
    return (
        _wrapped(f"Image quality: {'not measured' if words == NOT_MEASURED else words}", 16, width)
        if words
        else []
    )


def _measured(gate: Mapping[str, Any]) -> str:
    value = gate.get("value")
    unit = str(gate.get("unit") or "")
    said = f"{value:.4g} {unit}".strip() if isinstance(value, int | float) else "not measurable"
    return f"{said} {wanted(gate.get('limits') or ())}".strip()


def _flags(canvas: _Canvas, result: Result) -> list[str]:
    """Write the flags; returns the lines that did not fit."""
    flags: Sequence[str] = result.origin.flags
    title, colour = (
        ("Flags: look at these before the result is used", _AMBER) if flags else ("No flags", _SOFT)
    )
    canvas.write(_MARGIN, _BOTTOM, title, 18, colour)
    lines = [line for flag in flags for line in _wrapped(f"- {flag}", 16, SIDE - 2 * _MARGIN)]
    room = (SIDE - 28 - _BOTTOM - 26) // 20
    fit = lines if len(lines) <= room else [*lines[: room - 1], "(continued on the next image)"]
    canvas.column(_MARGIN, _BOTTOM + 26, fit, 16, 20, _WHITE)
    return lines[room - 1 :] if len(lines) > room else []


def _made_by(canvas: _Canvas, result: Result) -> None:
    origin = result.origin
    bundle = f", bundle {origin.bundle} {origin.bundle_id[:19]}" if origin.bundle else ""
    canvas.write(_MARGIN, SIDE - 24, f"hz {origin.version}{bundle}"[:110], 14, _SOFT)
