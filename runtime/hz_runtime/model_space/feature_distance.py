"""How far what an age network makes of a scan lies from what it made of its training people.

A network's features are the vector that its last layer reads: all that an age is computed from. The distance
is Mahalanobis', in the probabilistic principal components of the training people's features (Tipping & Bishop
1999): along a few principal directions by the variance there, along all others by what is left of it.

What it does not know: whether an age would be right, and what the network itself does not see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reading a manifest takes the name below from here, and not numpy
    import numpy as np
    from numpy.typing import NDArray

    F32 = NDArray[np.float32]
    F64 = NDArray[np.float64]

FEATURES = "features"  # a network's output of that name, (N, F) float32, beside its answer
MEASURE = "age_feature_distance"  # as results name the distance, beside a scan's other measures


@dataclass(frozen=True)
class FeatureReference:
    """The features of an age network's training people.

    mean : (F,).  directions : (K, F), orthonormal rows, K < F.  variances : (K,) along them.
    rest : variance along each of the F - K other directions.
    limit : the distance up to which people are like them; who is further away gets no age.
    """

    mean: F64
    directions: F64
    variances: F64
    rest: float
    limit: float = float("inf")

    def distances(self, features: F32 | F64) -> F64:
        """(N, F) features to (N,) distances, in standard deviations."""
        away = features.astype("float64") - self.mean
        along = away @ self.directions.T
        others = away - along @ self.directions
        squared: F64 = (along * along) @ (1 / self.variances) + (others * others).sum(axis=1) / self.rest
        distances: F64 = squared**0.5
        return distances

    def no_age_reasons(self, distance: float) -> tuple[str, ...]:
        """Why a scan at this distance gets no age; nothing where it is like the training people's."""
        if distance <= self.limit:
            return ()
        return (
            "no age: the age network finds this scan unlike those of the people that it was trained on: "
            f"distance {distance:.1f}, and {self.limit:.1f} is the most for people like them",
        )
