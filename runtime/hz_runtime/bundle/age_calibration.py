"""What a bundle states about its ages: the correction of their bias, and their prediction interval.

Limits are the answer plus and minus one half-width, calibrated at export or at a user's own site
(hz_calibration.age_interval) and good for people and scans like those it was calibrated on, so that results
say where a scan is not like them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hz_runtime.bundle.fields import REMEDY, get, number, texts
from hz_runtime.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MIN_AGE_SLOPE = 0.05  # a flatter fit says that the predictor does not see age; dividing by it invents ages
LEAST_SCANS = 8  # of a group, and people of known age in it, before it is judged as a whole
MIDDLE = (5, 95)  # percentiles
SAME_YEARS, SAME_SHARE = 2.0, 0.1  # nearly the same age: within this many years, or this share of known ages
NARROW_YEARS = 5.0  # people of known ages within this may well look of one age
Years = TypeVar("Years", float, "NDArray[np.float64]")


@dataclass(frozen=True)
class AgeBias:
    """Regression dilution of an age predictor: raw ~ slope * age + intercept on held-out predictions."""

    slope: float
    intercept: float
    n: int
    how: str

    def corrected(self, raw: Years) -> Years:
        """Age in years (one, or an array) with the fitted bias taken out: (raw - intercept) / slope."""
        return (raw - self.intercept) / self.slope


@dataclass(frozen=True)
class IntervalWidth:
    """The answer plus and minus `half_width` years, and the share of left-out subjects that was inside.

    coverage_ci95 : binomial 95 % interval of `coverage`.
    """

    half_width: float
    coverage: float
    coverage_ci95: tuple[float, float]

    def limits(self, ages: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) lower and upper limits around ages (N,), years. Nobody is younger than 0, so that cutting
        off there covers no fewer."""
        import numpy as np

        half = np.array([-self.half_width, self.half_width])
        cut: NDArray[np.float64] = np.maximum(np.asarray(ages, np.float64)[:, None] + half, 0.0)
        return cut


@dataclass(frozen=True)
class CalibrationSite:
    """Where ages were calibrated, of a bundle that `hz-calibrate age` was given.

    sites : names from the participants table, or by the user.  age_range : of the people there, years.
    raw_heads : whether their scans were raw heads, which hz prepared; else they were brains.
    bundle : id of the bundle that was calibrated.
    """

    sites: tuple[str, ...]
    age_range: tuple[float, float]
    raw_heads: bool
    bundle: str

    def __str__(self) -> str:
        return f"{', '.join(self.sites)}, {self.age_range[0]:g} to {self.age_range[1]:g} years"


@dataclass(frozen=True)
class AgeInterval:
    """Prediction interval of an age predictor: how far from its answer the true age may well be.

    level : nominal coverage, 0 to 1, for people and scans like the `n` calibration subjects.
    raw, corrected : of raw and of bias-corrected ages; corrected is None where that one could not be made.
    method, how : how the errors became an interval, and where they come from.
    site : where it was calibrated after the export; None where it was at export.
    """

    level: float
    n: int
    method: str
    how: str
    raw: IntervalWidth
    corrected: IntervalWidth | None
    site: CalibrationSite | None = None

    def of(self, bias: AgeBias | None) -> IntervalWidth | None:
        """The interval of the age that is shown: the corrected one of a bundle that corrects."""
        return self.raw if bias is None else self.corrected

    def caveat(self, flags: Sequence[str]) -> tuple[str, ...]:
        """What a scan with these flags must be told about its interval: nothing where there are none."""
        if not flags:
            return ()
        return (f"the {self.level:.0%} age interval was not made for such a scan: it may not hold the age",)

    def site_flags(self, limits: Sequence[float] | None) -> tuple[str, ...]:
        """The reason to look at an age whose interval `limits`, years, holds none of the site's ages."""
        if self.site is None or limits is None:
            return ()
        youngest, oldest = self.site.age_range
        if limits[0] <= oldest and youngest <= limits[1]:
            return ()
        return (
            f"the interval {limits[0]:.1f} to {limits[1]:.1f} holds none of the ages that it was calibrated "
            f"on ({self.site})",
        )


def age_flags(age: float | None, age_range: Sequence[float] | None) -> tuple[str, ...]:
    """Reasons to look at a predicted age, years: outside the training range, or no number at all.

    age : to 1/10000 year, as results hold it; None and what is not finite are no number.
    age_range : of the training cohort, years; None where the bundle states none.
    """
    if age is None or not math.isfinite(age):
        return ("the age network gave no number",)
    age = round(age, 4)
    if not age_range or float(age_range[0]) <= age <= float(age_range[1]):
        return ()
    return (
        f"predicted age {age:.1f} is outside the ages of the age network's training, {age_range[0]:g} to "
        f"{age_range[1]:g}: do not use it",
    )


def known_age_flags(
    known: float | None,
    predicted: float | None,
    limits: Sequence[float] | None,
    age_range: Sequence[float] | None,
    interval: AgeInterval | None = None,
) -> tuple[str, ...]:
    """Reasons not to use a predicted age that come from the person's known one; none where either is missing.

    known, predicted : years.  limits : of the prediction interval, years, or None.
    age_range : of the training cohort, years; None where the bundle states none.
    interval : what the limits are from, where it says on people of which ages it was calibrated.
    """
    if known is None or predicted is None:
        return ()
    if age_range and not float(age_range[0]) <= known <= float(age_range[1]):
        return (
            f"known age {known:g} is outside the ages of the age network's training, {age_range[0]:g} to "
            f"{age_range[1]:g}: do not use the predicted age",
        )
    if limits and not limits[0] <= known <= limits[1]:
        return (
            f"known age {known:g} is outside the interval {limits[0]:.1f} to {limits[1]:.1f} around the "
            "predicted age: check that scan and age are of one person",
        )
    site = interval.site if interval is not None and limits else None
    if site is not None and not site.age_range[0] <= known <= site.age_range[1]:
        return (f"known age {known:g} is none that the age interval was calibrated on ({site})",)
    return ()


def same_age_flags(predicted: Sequence[float], known: Sequence[float | None]) -> tuple[str, ...]:
    """Reason not to use any predicted age of a group: nearly the same one was predicted for all its scans.

    predicted, known : years, of the same scans; None where an age is not known.
    Judged by what lies between the 5th and the 95th percentile, so that an odd scan hides nothing: under 2
    years, or a tenth of what known ages span. Nothing is said of fewer than 8 scans, nor where 8 known ages
    or more lie within 5 years.
    """
    import numpy as np

    ages = [age for age in known if age is not None]
    if len(predicted) < LEAST_SCANS:
        return ()
    low, high = np.percentile(predicted, MIDDLE)
    people, narrow = "which is right only where all these people are of one age", SAME_YEARS
    if len(ages) >= LEAST_SCANS:
        youngest, oldest = np.percentile(ages, MIDDLE)
        if oldest - youngest < NARROW_YEARS:
            return ()
        people = f"and these people are {min(ages):g} to {max(ages):g} years old"
        narrow = max(SAME_YEARS, SAME_SHARE * (oldest - youngest))
    if high - low >= narrow:
        return ()
    return (
        f"nearly the same age was predicted for all {len(predicted)} scans, {low:.1f} to {high:.1f} years in "
        f"nine of ten, {people}: the age network does not tell them apart, do not use its ages",
    )


def age_metadata(interval: AgeInterval | None, bias: AgeBias | None, age_range: Any) -> dict[str, Any]:
    """The object "age" of run.json: which age is shown, and what is known about its interval.

    age_range : of the training cohort, years, or None.  "age_interval_coverage" is the nominal one, None
    where the bundle holds no interval of the age that it shows; then the interval's other keys are left out.
    """
    shown: dict[str, Any] = {
        "shown": "raw" if bias is None else "corrected",
        "training_range": list(age_range) if age_range else None,
        "age_interval_coverage": None,
    }
    width = None if interval is None else interval.of(bias)
    if interval is None or width is None:
        return shown
    return {
        **shown,
        "age_interval_coverage": interval.level,
        "half_width": width.half_width,
        "n": interval.n,
        "method": interval.method,
        "how": interval.how,
        "measured_coverage": width.coverage,
        "measured_coverage_ci95": list(width.coverage_ci95),
        **({} if interval.site is None else {"calibrated_at": site_metadata(interval.site)}),
    }


def site_metadata(site: CalibrationSite) -> dict[str, Any]:
    """Where ages were calibrated, as run.json and bundle.json hold it; plain JSON types."""
    return {
        "sites": list(site.sites),
        "age_range": list(site.age_range),
        "raw_heads": site.raw_heads,
        "bundle": site.bundle,
    }


def parse_age_bias(raw: object, where: str) -> AgeBias | None:
    """The object "age_bias" of bundle.json, checked. `where` starts the message of a BundleError."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is neither an object nor null.", REMEDY)
    slope = number(raw.get("slope"), f"{where}: slope")
    if slope <= MIN_AGE_SLOPE:
        raise BundleError(
            f"{where}: slope {slope:g} is too flat to correct with (must exceed {MIN_AGE_SLOPE}).", REMEDY
        )
    return AgeBias(
        slope=slope,
        intercept=number(raw.get("intercept"), f"{where}: intercept"),
        n=get(raw, "n", int, where),
        how=get(raw, "how", str, where, ""),
    )


def parse_age_interval(raw: object, where: str) -> AgeInterval | None:
    """The object "age_interval" of bundle.json, checked; None in bundles of before intervals, and in those
    that say why they have none ("none")."""
    if raw is None or (isinstance(raw, dict) and "none" in raw):
        return None
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is neither an object nor null.", REMEDY)
    level = number(raw.get("level"), f"{where}: level")
    if not 0 < level < 1:
        raise BundleError(f"{where}: level {level:g} is not a coverage between 0 and 1.", REMEDY)
    corrected = raw.get("corrected")
    return AgeInterval(
        level=level,
        n=get(raw, "n", int, where),
        method=get(raw, "method", str, where),
        how=get(raw, "how", str, where, ""),
        raw=_width(raw.get("raw"), f"{where}: raw"),
        corrected=None if corrected is None else _width(corrected, f"{where}: corrected"),
        site=None if raw.get("site") is None else _site(raw["site"], f"{where}: site"),
    )


def _width(raw: object, where: str) -> IntervalWidth:
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is not an object.", REMEDY)
    half_width = number(raw.get("half_width"), f"{where}: half_width")
    if half_width < 0:
        raise BundleError(f"{where}: half_width {half_width:g} is negative.", REMEDY)
    at = f"{where}: coverage"
    coverage: dict[str, Any] = get(raw, "coverage", dict, where)
    ends = [number(end, f"{at}: ci95") for end in get(coverage, "ci95", list, at)]
    if len(ends) != 2:
        raise BundleError(f"{at}: ci95 should hold two numbers.", REMEDY)
    return IntervalWidth(half_width, number(coverage.get("value"), f"{at}: value"), (ends[0], ends[1]))


def _site(raw: object, where: str) -> CalibrationSite:
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is not an object.", REMEDY)
    sites = texts(get(raw, "sites", list, where), f"{where}: sites")
    span = [number(end, f"{where}: age_range") for end in get(raw, "age_range", list, where)]
    if not sites or len(span) != 2 or span[0] > span[1]:
        raise BundleError(f"{where} names no site, or no youngest and oldest age.", REMEDY)
    heads, bundle = get(raw, "raw_heads", bool, where), get(raw, "bundle", str, where)
    return CalibrationSite(sites, (span[0], span[1]), heads, bundle)
