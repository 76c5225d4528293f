"""What a bundle states about its age network's own features: the object "age_features" of bundle.json.

What is done with it, `model_space.feature_distance` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hz_runtime.bundle.fields import REMEDY, number
from hz_runtime.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hz_runtime.model_space.feature_distance import FeatureReference

ROUNDED = 1e-3  # how nearly directions are at right angles and of length 1; they are stored to six digits


def parse_age_features(raw: object, where: str) -> FeatureReference | None:
    """The reference, checked; None in bundles without one. `where` starts the message of a BundleError."""
    if raw is None:
        return None
    import numpy as np

    from hz_runtime.model_space.feature_distance import FeatureReference

    if not isinstance(raw, dict):
        raise BundleError(f"{where} is neither an object nor null.", REMEDY)
    mean, variances = (_numbers(raw.get(key), f"{where}: {key}") for key in ("mean", "variances"))
    rows = raw.get("directions")
    if not isinstance(rows, list) or len(rows) != len(variances) or not 0 < len(rows) < len(mean):
        raise BundleError(
            f"{where}: directions should be as many as variances, and fewer than features.", REMEDY
        )
    directions = [_numbers(row, f"{where}: directions") for row in rows]
    if any(len(row) != len(mean) for row in directions):
        raise BundleError(f"{where}: directions should be of {len(mean)} numbers, as the mean is.", REMEDY)
    square = np.stack(directions)
    if np.abs(square @ square.T - np.eye(len(square))).max() > ROUNDED:
        raise BundleError(f"{where}: directions are not orthonormal.", REMEDY)
    rest, limit = (number(raw.get(key), f"{where}: {key}") for key in ("rest", "limit"))
    if min(rest, limit, *variances) <= 0:
        raise BundleError(f"{where}: variances, rest and limit should be above 0.", REMEDY)
    return FeatureReference(mean, square, variances, rest, limit)


def _numbers(raw: Any, where: str) -> NDArray[np.float64]:
    """(n,) float64, n >= 1."""
    import numpy as np

    if not isinstance(raw, list) or not raw:
        raise BundleError(f"{where} should be an array of numbers.", REMEDY)
    return np.array([number(value, where) for value in raw], np.float64)
