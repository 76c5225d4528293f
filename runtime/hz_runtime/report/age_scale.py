"""A predicted age on a scale: with its interval, the known age, and the ages that the network has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hz_runtime.report import markup
from hz_runtime.report.predictions import pair, prediction_of
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.prediction import Pair

_WIDTH, _HEIGHT, _EDGE, _LINE = 320, 58, 14, 20


@dataclass(frozen=True)
class AgeScale:
    """The scale that all scans of a run share, so that their pictures compare.

    low, high : its ends, years.  training : youngest and oldest of the training cohort, or None.
    interval_name : what the interval is called, "90 % interval".
    """

    low: float
    high: float
    training: Pair | None
    interval_name: str = "interval"

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> AgeScale:
        """What run.json's "age" and scans need."""
        about = markup.mapping(run.get("age"))
        training = pair(about.get("training_range"))
        ages = list(training or ())
        for scan in (markup.mapping(scan) for scan in markup.sequence(run.get("scans"))):
            prediction = prediction_of(scan)
            found = (prediction.age, markup.number(scan.get("age")), *(prediction.age_interval or ()))
            ages += [age for age in found if age is not None and -200 < age < 300]
        low, high = min(ages, default=0.0), max(ages, default=100.0)
        return cls(
            10.0 * math.floor(low / 10),
            10.0 * max(math.floor(low / 10) + 2, math.ceil(high / 10)),
            training,
            RunOutputs.of(run).interval_name,
        )

    def svg(self, scan: Mapping[str, Any]) -> str:
        """The scale with a scan's ages; "" where none was predicted."""
        prediction, known = prediction_of(scan), markup.number(scan.get("age"))
        age, interval = prediction.age, prediction.age_interval
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
            said.append(f"{self.interval_name} {interval[0]:.1f} to {interval[1]:.1f}")
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

    def _key(self, interval: Pair | None, known: float | None) -> str:
        entries = [('<circle class="predicted" cx="8" cy="6" r="5"/>', "predicted")]
        if interval:
            entries.append(('<path class="interval" d="M1 6H15M1 2v8M15 2v8"/>', self.interval_name))
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
