"""A predicted age on a scale: with its interval, the known age, and the ages that the network has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hz_runtime.report import markup

_WIDTH, _HEIGHT, _EDGE, _LINE = 320, 58, 14, 20


@dataclass(frozen=True)
class AgeScale:
    """The scale that all scans of a run share, so that their pictures compare.

    low, high : its ends, years.  training : youngest and oldest of the training cohort, or None.
    coverage : of the interval, 0 to 1, or None.
    """

    low: float
    high: float
    training: tuple[float, float] | None
    coverage: float | None

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> AgeScale:
        """What run.json's "age" and scans need."""
        about = markup.mapping(run.get("age"))
        training = pair(about.get("training_range"))
        ages = list(training or ())
        for scan in (markup.mapping(scan) for scan in markup.sequence(run.get("scans"))):
            found = (shown_age(scan), markup.number(scan.get("age")), *(pair(scan.get("age_interval")) or ()))
            ages += [age for age in found if age is not None and -200 < age < 300]
        low, high = min(ages, default=0.0), max(ages, default=100.0)
        return cls(
            10.0 * math.floor(low / 10),
            10.0 * max(math.floor(low / 10) + 2, math.ceil(high / 10)),
            training,
            markup.number(about.get("age_interval_coverage")),
        )

    def interval_name(self) -> str:
        """ "90 % interval", or just "interval"."""
        return "interval" if self.coverage is None else f"{self.coverage * 100:.0f} % interval"

    def svg(self, scan: Mapping[str, Any]) -> str:
        """The scale with a scan's ages; "" where none was predicted."""
        age, known, interval = shown_age(scan), markup.number(scan.get("age")), pair(scan.get("age_interval"))
        if age is None:
            return ""
        said = [f"predicted age {age:.1f} years"]
        parts = []
        if self.training:
            a, b = (self._x(end) for end in self.training)
            parts.append(f'<rect class="training" x="{a:.1f}" y="6" width="{b - a:.1f}" height="28" rx="3"/>')
            said.append(f"training ages {self.training[0]:g} to {self.training[1]:g}")
        parts += [self._axis()]
        if interval:
            a, b = (self._x(end) for end in interval)
            ends = f"M{a:.1f} {_LINE}H{b:.1f}M{a:.1f} {_LINE - 5}v10M{b:.1f} {_LINE - 5}v10"
            parts.append(f'<path class="interval" d="{ends}"/>')
            said.append(f"{self.interval_name()} {interval[0]:.1f} to {interval[1]:.1f}")
        if known is not None:
            x = self._x(known)
            parts.append(f'<path class="known" d="M{x:.1f} {_LINE - 8}l7 8l-7 8l-7-8z"/>')
            said.append(f"known age {known:.1f}")
        parts.append(f'<circle class="predicted" cx="{self._x(age):.1f}" cy="{_LINE}" r="5"/>')
        return (
            f'<svg class="age-scale" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{", ".join(said)}">{"".join(parts)}</svg>{self._key(interval, known)}\n'
        )

    def _axis(self) -> str:
        step = next(s for s in (10, 20, 50, 100) if (self.high - self.low) / s <= 8)
        ticks = range(int(math.ceil(self.low / step) * step), int(self.high) + 1, step)
        marks = "".join(f"M{self._x(t):.1f} 34v4" for t in ticks)
        names = "".join(f'<text x="{self._x(t):.1f}" y="50" text-anchor="middle">{t}</text>' for t in ticks)
        return f'<path class="axis" d="M{self._x(self.low)} 34H{self._x(self.high)}{marks}"/>{names}'

    def _key(self, interval: tuple[float, float] | None, known: float | None) -> str:
        entries = [('<circle class="predicted" cx="8" cy="6" r="5"/>', "predicted")]
        if interval:
            entries.append(('<path class="interval" d="M1 6H15M1 2v8M15 2v8"/>', self.interval_name()))
        if known is not None:
            entries.append(('<path class="known" d="M8 0l6 6l-6 6l-6-6z"/>', "known"))
        if self.training:
            name = f"training ages {self.training[0]:g} to {self.training[1]:g}"
            entries.append(('<rect class="training" x="1" y="1" width="14" height="10" rx="2"/>', name))
        return key(entries)

    def _x(self, age: float) -> float:
        share = (min(max(age, self.low), self.high) - self.low) / (self.high - self.low)
        return round(_EDGE + share * (_WIDTH - 2 * _EDGE), 1)


def key(entries: Sequence[tuple[str, str]]) -> str:
    """The key of a picture: (SVG of 16 x 12, HTML) of each entry."""
    items = "".join(
        f'<span><svg width="16" height="12" viewBox="0 0 16 12" aria-hidden="true">{sign}</svg>{name}</span>'
        for sign, name in entries
    )
    return f'<p class="key">{items}</p>'


def shown_age(scan: Mapping[str, Any]) -> float | None:
    """The predicted age to look at: the corrected one where there is one."""
    raw, corrected = markup.number(scan.get("age_raw")), markup.number(scan.get("age_corrected"))
    return raw if corrected is None else corrected


def pair(value: object) -> tuple[float, float] | None:
    """(low, high), or None for anything else."""
    numbers = [markup.number(item) for item in markup.sequence(value)]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None or numbers[0] > numbers[1]:
        return None
    return numbers[0], numbers[1]
