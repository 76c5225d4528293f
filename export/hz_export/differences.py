"""How far answers stray from a reference, and whether that is too far.

`measured` keeps more than any threshold needs, volume by volume, so that `checks` can judge the same
numbers again tomorrow by other thresholds, with no network at hand. Numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError

F32 = NDArray[np.float32]

QUANTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}


@dataclass(frozen=True)
class Tolerance:
    """How far a file may stray before it is not published.

    mean, p999 : absolute difference inside the brain, mean and 99.9th percentile, intensity units.
    years : largest difference of any predicted age.
    relative : mean difference inside the brain over the reference's mean intensity there; None: not judged.
    years95 : difference that 95 % of the ages keep to, in years; None: not judged.
    probability : largest difference of any diagnosis' probability.
    """

    mean: float
    p999: float
    years: float
    relative: float | None = None
    years95: float | None = None
    probability: float = 0.05


# By how a file computes and stores. Rounding a weight to float16 moves it by at most 1 part in 2048.
# bfloat16 has 3 bits fewer than float16, eight times the rounding error; half of that is allowed here.
TOLERANCES = {
    "fp32": Tolerance(mean=1e-4, p999=1e-3, years=0.05, probability=1e-3),
    "fp32, half weights": Tolerance(mean=1e-3, p999=1e-2, years=0.1, probability=5e-3),
    "fp16": Tolerance(mean=2e-3, p999=2e-2, years=0.25, probability=1e-2),
    "bf16": Tolerance(mean=8e-3, p999=8e-2, years=1.0, probability=4e-2),
    "int8": Tolerance(mean=2e-2, p999=2e-1, years=2.0, probability=5e-2, relative=0.02, years95=0.5),
}
KEYS = tuple(Tolerance.__dataclass_fields__)
UNITS = {"age": "years", "diagnosis": "probability"}  # of a predictor's answers, by its role


@dataclass(frozen=True)
class Check:
    """One threshold held against one number. A number that is not finite is past every limit."""

    key: str
    what: str
    value: float
    limit: float

    @property
    def past(self) -> bool:
        return not self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.what} {self.value:.3g} (at most {self.limit:g})"


def measured(
    found: F32,
    expected: F32,
    brain: NDArray[np.bool_],
    years: tuple[F32, F32] | None = None,
    unit: str = "years",
) -> dict[str, Any]:
    """Everything that is kept about one engine's answers, plain JSON types.

    found, expected : (n, D, H, W) volumes, or (n,) numbers.  brain : (n, D, H, W) bool, ignored for numbers.
    years : (found, expected) ages (n,) behind a harmonizer, or None.  unit : of numbers, one of UNITS.
    """
    if expected.ndim == 1:
        return {
            unit: differences(found, expected),
            "per_volume": [{unit: gap} for gap in _signed(found, expected)],
        }
    rows: dict[str, Any] = {
        "brain": {
            **differences(found[brain], expected[brain]),
            "reference_mean": _mean(expected[brain]),
        },
        "overall": differences(found, expected),
    }
    volumes: list[dict[str, Any]] = [
        {
            "brain": {**spread(f[b], e[b]), "reference_mean": _mean(e[b])},
            "overall": spread(f, e),
        }
        for f, e, b in zip(found, expected, brain, strict=True)
    ]
    if years is not None:
        rows["years"] = differences(*years)
        for volume, gap in zip(volumes, _signed(*years), strict=True):
            volume["years"] = gap
    return {**rows, "per_volume": volumes}


def differences(found: F32, expected: F32) -> dict[str, float | int | None]:
    """max, p99.9 and mean absolute difference, PSNR in dB for a range of 1 (None where equal), and how many
    values were not finite (those are left out of the rest)."""
    gap, lost = _gap(found, expected)
    mse = float(np.square(gap).mean()) if gap.size else float("inf")
    return {
        "max": float(gap.max(initial=0.0)),
        "p999": float(np.percentile(gap, 99.9)) if gap.size else 0.0,
        "mean": float(gap.mean()) if gap.size else 0.0,
        "psnr_db": round(-10 * float(np.log10(mse)), 2) if 0 < mse < float("inf") else None,
        "nonfinite": lost,
    }


def spread(found: F32, expected: F32) -> dict[str, float | int]:
    """Mean, quantiles and max of one volume's absolute differences, and its non-finite values."""
    gap, lost = _gap(found, expected)
    levels = np.percentile(gap, list(QUANTILES.values())) if gap.size else np.zeros(len(QUANTILES))
    return {
        "mean": float(gap.mean()) if gap.size else 0.0,
        **{name: float(level) for name, level in zip(QUANTILES, levels, strict=True)},
        "max": float(gap.max(initial=0.0)),
        "nonfinite": lost,
    }


def checks(row: Mapping[str, Any], tolerance: Tolerance) -> tuple[Check, ...]:
    """Every threshold of `tolerance` that speaks of what `row` measured (a result of `measured`).

    Raises UsageError for a threshold whose number was not kept, as in evidence of an older hz.
    """
    found: list[Check] = []
    if "brain" in row:
        brain = row["brain"]
        found += [
            Check("mean", "mean difference in the brain", brain["mean"], tolerance.mean),
            Check("p999", "99.9th percentile in the brain", brain["p999"], tolerance.p999),
            Check("nonfinite", "non-finite values", row["overall"]["nonfinite"], 0),
        ]
        if tolerance.relative is not None:
            share = brain["mean"] / max(_kept(brain, "reference_mean"), 1e-12)
            found.append(
                Check("relative", "mean difference over the brain's mean", share, tolerance.relative)
            )
    if "years" in row:
        found += [
            Check("years", "largest difference in years", row["years"]["max"], tolerance.years),
            Check("nonfinite", "non-finite ages", row["years"]["nonfinite"], 0),
        ]
        if tolerance.years95 is not None:
            years = [volume["years"] for volume in _kept(row, "per_volume")]
            found.append(
                Check(
                    "years95", "years that 95 % of scans keep to", most_keep_to(years, 95), tolerance.years95
                )
            )
    if "probability" in row:
        gap = row["probability"]
        found += [
            Check("probability", "largest difference in probability", gap["max"], tolerance.probability),
            Check("nonfinite", "non-finite probabilities", gap["nonfinite"], 0),
        ]
    return tuple(found)


def tolerance_values(row: Mapping[str, Any], tolerance: Tolerance) -> dict[str, float]:
    """The thresholds that `row` was held against, for its evidence."""
    return {check.key: check.limit for check in checks(row, tolerance) if check.key in KEYS}


def _mean(values: F32) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else 0.0


def _gap(found: F32, expected: F32) -> tuple[NDArray[np.float64], int]:
    """Absolute differences of the finite values, (k,) float64, and how many values are not finite."""
    finite = np.isfinite(found)
    gap: NDArray[np.float64] = np.abs(found.astype(np.float64) - expected)[finite]
    return gap, int(found.size - np.count_nonzero(finite))


def _signed(found: F32, expected: F32) -> list[float | None]:
    """found - expected, one number an age; None where it is not finite (JSON has no NaN)."""
    gaps = found.astype(np.float64) - expected
    return [float(gap) if np.isfinite(gap) else None for gap in gaps]


def most_keep_to(values: Sequence[float | None], percent: float) -> float:
    """The smallest size that `percent` of the values keep to; infinite values are missing ones."""
    sizes = [float("inf") if value is None else abs(value) for value in values]
    return float(np.percentile(sizes, percent, method="inverted_cdf"))


def _kept(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise UsageError(
            f"this evidence holds no {key!r}: an older hz did not keep it.",
            "Measure again:  hz-bench parity BUNDLE",
        )
    return row[key]
