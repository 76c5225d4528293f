"""Scatter plots as inline SVG; the page's style sheet gives the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hz_runtime.report import markup

COLOURS = 8
_SHAPES = (  # as tall and wide as a circle of radius 4.5 looks
    "M{x} {y}m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "M{x} {y}m-4-4h8v8h-8z",
    "M{x} {y}m0-5.4l5.1 9h-10.2z",
    "M{x} {y}m0-5.6l5.6 5.6l-5.6 5.6l-5.6-5.6z",
    "M{x} {y}m0 5.4l5.1-9h-10.2z",
)
_WIDTH, _HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 42
ASPECT = (_WIDTH - _LEFT - _RIGHT) / (_HEIGHT - _TOP - _BOTTOM)
"""Width over height of the frame that holds the points."""


@dataclass(frozen=True)
class Point:
    """x, y in data units; `group` picks colour and shape; `name` is what hovering says (plain text)."""

    x: float
    y: float
    group: int
    name: str


@dataclass(frozen=True)
class Line:
    """A line through data units, with a short plain text at its right end or none."""

    x: tuple[float, float]
    y: tuple[float, float]
    dashed: bool = False
    text: str = ""


def mark(group: int, x: float, y: float, name: str = "") -> str:
    """The sign of a group of points at a place of the picture."""
    # Colour and shape move on together, so that neighbours differ in both; they repeat after 40 groups.
    shape = _SHAPES[group % len(_SHAPES)].format(x=f"{x:.1f}", y=f"{y:.1f}")
    title = f"<title>{markup.text(name)}</title>" if name else ""
    return f'<path class="mark s{group % COLOURS}" d="{shape}">{title}</path>'


def scatter(
    points: Sequence[Point],
    label: str,
    axes: tuple[str, str],
    lines: Sequence[Line] = (),
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    ticks: Sequence[tuple[float, str]] | None = None,
    numbers: bool = True,
) -> str:
    """A plot of points and lines.

    label : what a screen reader says.  axes : their names.  All plain text.
    limits : ((left, right), (bottom, top)); None: whatever holds everything.
    ticks : places and names on the horizontal axis in place of numbers.
    numbers : whether the axes carry numbers.
    """
    frame = limits or (
        _spread([p.x for p in points] + [x for line in lines for x in line.x]),
        _spread([p.y for p in points] + [y for line in lines for y in line.y]),
    )
    (left, right), (bottom, top) = frame

    def at(x: float, y: float) -> tuple[float, float]:
        across = (min(max(x, left), right) - left) / (right - left)
        up = (min(max(y, bottom), top) - bottom) / (top - bottom)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    if numbers:
        for value in _nice(bottom, top):
            y = at(left, value)[1]
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
            parts.append(_words(_LEFT - 6, y + 4, "end", f"{value:g}".replace("-", "\u2212")))
    if numbers or ticks is not None:
        for place, name in ticks if ticks is not None else [(v, f"{v:g}") for v in _nice(left, right)]:
            parts.append(_words(at(place, bottom)[0], _HEIGHT - _BOTTOM + 16, "middle", name))
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    for line in lines:
        (x0, y0), (x1, y1) = (at(x, y) for x, y in zip(line.x, line.y, strict=True))
        kind = "line dashed" if line.dashed else "line"
        parts.append(f'<path class="{kind}" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
        if line.text:
            parts.append(_words(x1 - 2, y1 - 4, "end", line.text))
    parts += [mark(p.group, *at(p.x, p.y), p.name) for p in points]
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(_words((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "middle", axes[0]))
    parts.append(
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{markup.text(axes[1])}</text>"
    )
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{markup.text(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _words(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{markup.text(text)}</text>'


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Limits with a margin around the values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _nice(low: float, high: float) -> list[float]:
    """Round numbers within the limits, about five."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * s for s in (1, 2, 5, 10) if unit * s >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
