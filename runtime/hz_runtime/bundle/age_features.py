"""What a bundle states about its age network's own features: the object "age_features" of bundle.json.

What is done with it, `model_space.feature_distance` says. Plain numbers: to read a manifest takes no numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hz_runtime.bundle.fields import REMEDY, number
from hz_runtime.errors import BundleError

if TYPE_CHECKING:
    from hz_runtime.model_space.feature_distance import FeatureReference

Numbers = tuple[float, ...]
ROUNDED = 1e-3  # how nearly directions are at right angles and of length 1; they are stored to six digits


@dataclass(frozen=True)
class AgeFeatures:
    """As a manifest holds them; of the lengths that `FeatureReference` states."""

    mean: Numbers
    directions: tuple[Numbers, ...]
    variances: Numbers
    rest: float
    limit: float

    def reference(self) -> FeatureReference:
        """The same as arrays, to measure distances from."""
        import numpy as np

        from hz_runtime.model_space.feature_distance import FeatureReference

        mean, directions, variances = (
            np.array(numbers, np.float64) for numbers in (self.mean, self.directions, self.variances)
        )
        return FeatureReference(mean, directions, variances, self.rest, self.limit)


def parse_age_features(raw: object, where: str) -> AgeFeatures | None:
    """The features, checked; None in bundles without them. `where` starts the message of a BundleError."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is neither an object nor null.", REMEDY)
    mean, variances = (_numbers(raw.get(key), f"{where}: {key}") for key in ("mean", "variances"))
    rows = raw.get("directions")
    if not isinstance(rows, list) or len(rows) != len(variances) or not 0 < len(rows) < len(mean):
        raise BundleError(
            f"{where}: directions should be as many as variances, and fewer than features.", REMEDY
        )
    directions = tuple(_numbers(row, f"{where}: directions") for row in rows)
    if any(len(row) != len(mean) for row in directions):
        raise BundleError(f"{where}: directions should be of {len(mean)} numbers, as the mean is.", REMEDY)
    if not _orthonormal(directions):
        raise BundleError(f"{where}: directions are not orthonormal.", REMEDY)
    rest, limit = (number(raw.get(key), f"{where}: {key}") for key in ("rest", "limit"))
    if min(rest, limit, *variances) <= 0:
        raise BundleError(f"{where}: variances, rest and limit should be above 0.", REMEDY)
    return AgeFeatures(mean, directions, variances, rest, limit)


def _orthonormal(rows: tuple[Numbers, ...]) -> bool:
    products = (
        (i == j, sum(a * b for a, b in zip(one, other, strict=True)))
        for i, one in enumerate(rows)
        for j, other in enumerate(rows[: i + 1])
    )
    return all(abs(product - same) <= ROUNDED for same, product in products)


def _numbers(raw: Any, where: str) -> Numbers:
    """(n,), n >= 1."""
    if not isinstance(raw, list) or not raw:
        raise BundleError(f"{where} should be an array of numbers.", REMEDY)
    return tuple(number(value, where) for value in raw)
