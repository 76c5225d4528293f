"""Histograms as inline SVG: curves of shares over [0, 1], coloured by the page's style sheet."""

from __future__ import annotations

import html
from collections.abc import Sequence

Counts = Sequence[int]

_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 8, 30


def histogram_svg(before: Sequence[Counts], after: Sequence[Counts], label: str) -> str:
    """One SVG with a step curve for each histogram.

    before, after : counts per bin over [0, 1]; each curve is scaled to shares of its own total, so that
        scans with different numbers of voxels compare.
    label : what a screen reader says; escaped here.
    """
    many = " many" if max(len(before), len(after)) > 1 else ""
    curves = [("before", _shares(c)) for c in before] + [("after", _shares(c)) for c in after]
    # The outermost bins collect what was clipped; a spike there must not flatten the rest.
    peaks = sorted(max(s[1:-1], default=0.0) for _, s in curves) or [0.0]
    # Nor must one odd scan among many, which is cut off then.
    top = min(peaks[-1], 2.5 * peaks[len(peaks) // 2]) or peaks[-1] or 1.0
    paths = "".join(f'<path class="{kind}{many}" d="{_steps(s, top)}"/>' for kind, s in curves)
    base, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    ticks = "".join(
        _words(_LEFT + share * (right - _LEFT), base + 12, anchor, f"{share:g}")
        for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    )
    caption = _words(_WIDTH / 2, _HEIGHT - 6, "middle", "intensity, scaled 0 to 1")
    title = html.escape(label)
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
        f'<path class="axis" d="M{_LEFT} {base}H{right}"/>{paths}{ticks}{caption}</svg>'
    )


def _words(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{text}</text>'


def _shares(counts: Counts) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _steps(shares: Sequence[float], top: float) -> str:
    wide = (_WIDTH - _LEFT - _RIGHT) / max(1, len(shares))
    tall = _HEIGHT - _TOP - _BOTTOM
    points = [f"M{_LEFT} {_HEIGHT - _BOTTOM}"]
    for i, share in enumerate(shares):
        points.append(f"V{_HEIGHT - _BOTTOM - min(1.0, share / top) * tall:.1f}H{_LEFT + (i + 1) * wide:.1f}")
    return "".join(points) + f"V{_HEIGHT - _BOTTOM}"
