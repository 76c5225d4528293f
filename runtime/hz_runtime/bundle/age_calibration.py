"""What a bundle states about its ages: the correction of their bias, and their prediction interval.

Limits are the answer plus and minus one half-width, calibrated at export (hz_calibration.age_interval) and
good for people and scans like those it was calibrated on, so that results say where a scan is not like them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
class AgeInterval:
    """Prediction interval of an age predictor: how far from its answer the true age may well be.

    level : nominal coverage, 0 to 1, for people and scans like the `n` calibration subjects.
    raw, corrected : of raw and of bias-corrected ages; corrected is None where that one could not be made.
    method, how : how the errors became an interval, and where they come from.
    """

    level: float
    n: int
    method: str
    how: str
    raw: IntervalWidth
    corrected: IntervalWidth | None

    def of(self, bias: AgeBias | None) -> IntervalWidth | None:
        """The interval of the age that is shown: the corrected one of a bundle that corrects."""
        return self.raw if bias is None else self.corrected

    def caveat(self, flags: Sequence[str]) -> tuple[str, ...]:
        """What a scan with these flags must be told about its interval: nothing where there are none."""
        if not flags:
            return ()
        return (f"the {self.level:.0%} age interval is not calibrated for such a scan and may not cover it",)


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
    }
