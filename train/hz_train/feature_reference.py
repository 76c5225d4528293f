"""What an age network makes of its training people: the reference that a bundle compares new scans with.

The directions are those of the network that is exported, on the people that it was trained on, whom it fits
better than others. The limit is none of theirs: it comes from people whom a fold's network had not seen, each
at the distance from that network's own training people. Networks of different folds have different features,
but one unit for distances. The exported network has seen more people than a fold's: the limit is rather too
wide for it than too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.feature_distance import FeatureReference

F64 = NDArray[np.float64]

MOST_DIRECTIONS = 8
SCANS_A_DIRECTION = 4  # fewer say little of a variance
LEAST_REST = 0.03  # of the mean variance; below it, a distance would be one of rounding errors
FEWEST = 8  # training scans, and held-out people for a limit
QUANTILE = 0.95  # of held-out distances
SLACK = 1.5  # times that; 1 would refuse one of twenty sound people


def feature_reference(features: F64) -> FeatureReference | None:
    """The reference of (n, F) features of training scans, without a limit; None where there are fewer than 8
    or they do not vary."""
    if len(features) < FEWEST:
        return None
    mean = features.mean(axis=0)
    _, sizes, directions = np.linalg.svd(features - mean, full_matrices=False)
    variances = np.square(sizes) / (len(features) - 1)  # from the largest on
    count = min(MOST_DIRECTIONS, len(features) // SCANS_A_DIRECTION, features.shape[1] - 1)
    total, kept = variances.sum(), variances[:count]
    if count < 1 or not total > 1e-12 * max(1.0, np.square(mean).sum()):
        return None
    rest = (total - kept.sum()) / (features.shape[1] - count)
    rest = max(rest, LEAST_REST * total / features.shape[1])
    return FeatureReference(mean, directions[:count], np.maximum(kept, rest), float(rest))


def stored_reference(reference: FeatureReference | None, held_out: Sequence[float]) -> dict[str, Any]:
    """A checkpoint's "age_features", with the limit that held-out distances set; empty where there is no
    reference, or fewer than 8 of them."""
    if reference is None or len(held_out) < FEWEST:
        return {}
    limit = SLACK * float(np.quantile(held_out, QUANTILE))
    return {
        "mean": _short(reference.mean),
        "directions": [_short(row) for row in reference.directions],
        "variances": _short(reference.variances),
        "rest": float(f"{reference.rest:.6g}"),
        "limit": float(f"{limit:.4g}"),
        "how": f"limit {SLACK:g} times the {QUANTILE:.0%} quantile of {len(held_out)} held-out scans",
    }


def _short(values: F64) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
