"""The image quality of a brain: noise, blur, ghosts of motion and the receive field left over, with verdicts.

Measured on the stripped brain at the scan's own resolution, where the usual measures of MRIQC need the air
around the head. All four are free of the intensities' scale. White matter is told on voxels of about 2 mm
after its smooth field is taken out; noise alone is read from the scan's own voxels.

A measure that goes beyond its limit is a reason to look at the scan, and none to refuse it. What cannot be
measured has no value, and a reason. What it does not know: what noise an earlier filter took out, blur finer
than a voxel of 2 mm, and whether the scan is good enough for anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import NoBrain
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.foreground import every_second, foreground_threshold
from hz_runtime.model_space.levels import otsu_thresholds
from hz_runtime.model_space.morphology import eroded
from hz_runtime.model_space.resample import bounding_box
from hz_runtime.model_space.smooth_field import SmoothField

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Triple = tuple[int, int, int]

OK, LOOK, NOT_MEASURED = "ok", "look at it", "n/a"

# Calibrated on faults simulated in real heads by benchmarks/image_quality.py; its JSON in benchmarks/results
# says how many, of which sites. Halfway, in the logarithm, from the most that a sound head of the training
# half has to the training half's median at the strongest fault.
LIMITS: Mapping[str, float] = {"noise": 0.07, "blur": 8.0, "ghosts": 0.05, "field": 0.4}
UNITS: Mapping[str, str] = {
    "noise": "of the white matter's level, standard deviation a voxel",
    "blur": "mm, FWHM of the brain's smoothness on voxels of 2 mm",
    "ghosts": "of the white matter's level, ripples of 6 mm beyond the noise",
    "field": "of the white matter's level, from the dark to the bright side",
}
MEANINGS: Mapping[str, str] = {
    "noise": "noisy",
    "blur": "blurred",
    "ghosts": "ghosts of motion, or another pattern, in its white matter",
    "field": "a receive field is left in it",
}
UNCORRECTED = "no verdict: nothing took the field out of this brain here"

COARSE_MM = 2.05  # voxels are averaged up to this size
THICKEST_MM = 2.5  # the limits come from voxels of up to 2 mm
LEAST_WHITE_CM3 = 30.0  # of inner white matter: real heads have 200 and more on voxels of 2 mm
SAMPLES = 12_000  # voxels that noise is read from: its standard error is then 1 %
LEAST_SAMPLES = 500  # stretches of white matter that ripples are read from: 5 %
RIPPLE_MM = 6.0
FAR = 3  # coarse voxels; blur compares what varies over so many with what varies over one
TO_SD = 1.4826  # standard deviation of a normal distribution, in its median absolute deviation
TO_FWHM = 2.3548


@dataclass(frozen=True)
class Quality:
    """One measure of a scan.

    measure : noise, blur, ghosts or field.  value : in UNITS; None where it was not measured.
    limit : beyond it the scan is to be looked at; None where there is no verdict.
    reason : why there is no value or no verdict; else empty.
    """

    measure: str
    value: float | None
    limit: float | None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """OK, LOOK or NOT_MEASURED."""
        if self.value is None or self.limit is None:
            return NOT_MEASURED
        return LOOK if self.value > self.limit else OK

    @property
    def flag(self) -> str:
        """What to say of a scan that is to be looked at; else empty."""
        if self.verdict != LOOK:
            return ""
        return (
            f"image quality: {MEANINGS[self.measure]} ({self.measure} {self.value:.3g}, at most "
            f"{self.limit:g} in sound heads): look at it"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "measure": self.measure,
            "verdict": self.verdict,
            "value": self.value,
            "limit": self.limit,
            "unit": UNITS[self.measure],
            **({"reason": self.reason} if self.reason else {}),
        }


def image_quality(volume: Volume, *, corrected: bool) -> tuple[Quality, ...]:
    """Noise, blur, ghosts and field of a stripped brain, in this order; raises nothing for a brain.

    volume : air as its lowest value (`air.with_air_lowest`).
    corrected : whether its field was taken out by N4 here. Without that the field is measured, and has no
        verdict: real heads that nobody corrected have as much as a fault.
    """
    try:
        white = WhiteMatter.of(volume)
    except NoBrain as error:
        return _none(str(error))
    if isinstance(white, str):
        return _none(white)
    ripples, width = white.ghosts(), white.blur_mm()
    return (
        _measured("noise", white.noise()),
        _measured("blur", width, "the brain is too thin" if width is None else ""),
        _measured("ghosts", ripples, "too little white matter in one piece" if ripples is None else ""),
        Quality("field", _rounded(white.field.spread), None, UNCORRECTED)
        if not corrected
        else _measured("field", white.field.spread),
    )


def quality_flags(qualities: Sequence[Quality]) -> tuple[str, ...]:
    """Reasons to look at the scan before trusting what is made of it."""
    return tuple(quality.flag for quality in qualities if quality.flag)


def _none(reason: str) -> tuple[Quality, ...]:
    return tuple(Quality(name, None, None, reason) for name in LIMITS)


def _measured(name: str, value: float | None, reason: str = "") -> Quality:
    if value is None or not np.isfinite(value):
        return Quality(name, None, None, reason or "no finite number came of it")
    return Quality(name, _rounded(value), LIMITS[name])


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


@dataclass(frozen=True, eq=False)
class WhiteMatter:
    """A brain's white matter, and the brain without its smooth field.

    own : the scan's own voxels in the brain's box, air not 0.  each : own voxels in a coarse one, by axis.
    coarse : (I, J, K) float32, air 0, without the field.  brain, inner : bool; inner is white matter a voxel
    from all else.  spacing : (3,) mm of a coarse voxel.  level : white matter's median in `coarse`.
    """

    own: F32
    each: Triple
    coarse: F32
    brain: Mask
    inner: Mask
    spacing: F64
    level: float
    field: SmoothField

    @classmethod
    def of(cls, volume: Volume) -> WhiteMatter | str:
        """Of a brain; why not, where its white matter cannot be told. Raises NoBrain for an empty one."""
        if float(volume.spacing.max()) > THICKEST_MM:
            largest = float(volume.spacing.max())
            return f"voxels of {largest:.3g} mm: it was calibrated on up to {THICKEST_MM:g} mm"
        low, threshold = volume.data.min(), foreground_threshold(every_second(volume.data))
        own = volume.data[bounding_box(volume.data > threshold)]
        x, y, z = (max(1, int(COARSE_MM / step)) for step in volume.spacing)
        spacing = volume.spacing * (x, y, z)
        coarse = own - low
        for axis, count in (
            (2, z),
            (1, y),
            (0, x),
        ):  # the last axis first: what is next to each other in memory
            coarse = averaged(coarse, axis, count)
        brain = coarse > threshold - low
        field = SmoothField.fitted(coarse, brain, spacing)
        if field is None:
            return "too little brain to fit a field to"
        coarse = coarse / field.on(coarse.shape, spacing)
        smooth = smoothed(coarse)  # a threshold on noisy voxels would choose those where noise is low
        white = (smooth > otsu_thresholds(smooth[brain][::3])[1]) & brain
        inner = np.zeros_like(white)
        core = (slice(1, -1),) * 3  # what lies on the box's faces has neighbours outside it
        inner[core] = eroded(white)[core]
        if inner.sum() * spacing.prod() / 1000 < LEAST_WHITE_CM3:
            return f"less than {LEAST_WHITE_CM3:g} cm3 of inner white matter"
        level = float(np.median(coarse[inner]))
        return cls(own, (x, y, z), coarse, brain, inner, spacing, level, field)

    def noise(self) -> float:
        """Standard deviation of the noise of one of the scan's own voxels, in shares of `level`.

        Immerkaer 1996: the second difference along two axes at once, which no edge along either has, has of
        unit noise the variance 36. Its median absolute deviation in inner white matter, the median of three
        planes.
        """
        at = np.argwhere(self.inner)
        at = at[:: max(1, len(at) // SAMPLES)]
        scale = np.float32(1) / self.field.at((at + 0.5) * self.spacing)  # (n,)
        x, y, z = (at * self.each + np.array(self.each) // 2).T  # inner: its neighbours are in the box
        found = []
        for plane in ((0, 1), (0, 2), (1, 2)):
            total = np.zeros(len(at), np.float32)
            for i, first in enumerate((1, -2, 1), -1):
                for j, second in enumerate((1, -2, 1), -1):
                    step = [0, 0, 0]
                    step[plane[0]], step[plane[1]] = i, j
                    total += np.float32(first * second) * self.own[x + step[0], y + step[1], z + step[2]]
            found.append(spread_of(np.asarray(total * scale, np.float32)) / 6)
        return float(np.median(found)) / self.level

    def ghosts(self) -> float | None:
        """Ripples of inner white matter, in shares of `level`; None where it has too few stretches of 12 mm.

        Motion takes energy from edges and leaves it where there are none, along the phase encoding. So: the
        second difference over RIPPLE_MM along each axis, the middle one of the three, less what noise has.
        """
        found = []
        for axis, spacing in enumerate(self.spacing):
            steps = max(1, round(RIPPLE_MM / spacing))
            inside = along(self.inner, axis, steps, -steps)
            inside = (
                inside & along(self.inner, axis, 2 * steps, None) & along(self.inner, axis, 0, -2 * steps)
            )
            values = second_difference(self.coarse, axis, steps)[inside]
            if values.size < LEAST_SAMPLES:
                return None
            found.append(spread_of(values) ** 2 / 6)
        rough = []
        for one, other in ((0, 1), (0, 2), (1, 2)):
            both = second_difference(second_difference(self.coarse, one, 1), other, 1)
            inside = along(along(self.inner, one, 1, -1), other, 1, -1)
            rough.append(spread_of(both[inside]) ** 2 / 36)
        return float(np.sqrt(max(sorted(found)[1] - min(rough), 0.0))) / self.level

    def blur_mm(self) -> float | None:
        """FWHM of the Gaussian that makes white noise vary as the brain does over one and over FAR voxels.

        For Gaussian-smoothed noise of standard deviation s the correlation at d is exp(-d^2 / 4 s^2), and the
        second difference over d has variance 6 - 8 r(d) + 2 r(2 d). No contrast and no scale is in the ratio.
        None where along some axis no voxel has brain so far to both sides.
        """
        deep = eroded(self.brain, 2)
        if not all(along(deep, axis, FAR, -FAR).any() for axis in range(3)):
            return None
        near, far = (
            np.mean(
                [
                    np.mean(
                        second_difference(self.coarse, axis, steps)[along(deep, axis, steps, -steps)] ** 2,
                        dtype=np.float64,
                    )
                    for axis in range(3)
                ]
            )
            for steps in (1, FAR)
        )
        return fwhm_of_ratio(float(far / near), self.spacing)


def fwhm_of_ratio(ratio: float, spacing: F64) -> float:
    """The FWHM, mm, at which smoothed noise has this ratio of variances over FAR voxels and over one, or nan.

    spacing : (3,) mm, over whose axes variances are averaged.
    """

    def modelled(sd: float) -> float:
        def variance(distance: F64) -> float:
            return float(
                np.mean(6 - 8 * np.exp(-((distance / sd) ** 2) / 4) + 2 * np.exp(-((distance / sd) ** 2)))
            )

        return variance(FAR * spacing) / variance(spacing)

    low, high = 0.1 * float(spacing.min()), 20.0 * float(spacing.max())
    if not ratio > 0:
        return float("nan")
    for _ in range(40):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if modelled(middle) < ratio else (low, middle)
    return TO_FWHM * low


def averaged(data: F32, axis: int, count: int) -> F32:
    """(I, J, K) with `count` voxels along an axis in one, their mean; what is left over at the end goes."""
    if count == 1:
        return data
    size = data.shape[axis] // count * count
    parts = [data[(slice(None),) * axis + (slice(first, size, count),)] for first in range(count)]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total * np.float32(1 / count)


def smoothed(data: F32) -> F32:
    """(I, J, K) under binomial weights of 1, 2, 1 along each axis; air lies around."""
    for axis in range(3):
        out = data * np.float32(0.5)
        out[(slice(None),) * axis + (slice(1, None),)] += along(data, axis, 0, -1) * np.float32(0.25)
        out[(slice(None),) * axis + (slice(None, -1),)] += along(data, axis, 1, None) * np.float32(0.25)
        data = out
    return data


def along(data: NDArray[Any], axis: int, first: int, last: int | None) -> NDArray[Any]:
    """The part of an array from `first` to before `last` along an axis, a view."""
    return data[(slice(None),) * axis + (slice(first, last),)]


def second_difference(data: F32, axis: int, steps: int) -> F32:
    """x(n - steps) - 2 x(n) + x(n + steps) along an axis, which it shortens by steps at either end."""
    middle = along(data, axis, steps, -steps)
    out: F32 = along(data, axis, 2 * steps, None) + along(data, axis, 0, -2 * steps) - np.float32(2) * middle
    return out


def spread_of(values: F32) -> float:
    """The standard deviation that a normal distribution of this median absolute deviation has."""
    return TO_SD * float(np.median(np.abs(values - np.median(values))))
