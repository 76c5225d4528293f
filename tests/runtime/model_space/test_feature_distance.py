"""Distances of features against Mahalanobis' by the whole covariance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from hz_runtime.model_space.feature_distance import FeatureReference


def test_distances_are_mahalanobis_by_the_covariance_that_the_directions_stand_for() -> None:
    rng = np.random.default_rng(3)
    directions = np.linalg.qr(rng.normal(size=(7, 7)))[0][:3]
    variances, rest, mean = np.array([9.0, 4.0, 1.5]), 0.25, rng.normal(size=7)
    reference = FeatureReference(mean, directions, variances, rest)
    covariance = (directions.T * variances) @ directions + rest * (np.eye(7) - directions.T @ directions)
    features = (mean + rng.normal(size=(5, 7)) * 3).astype(np.float32)
    expected = [mahalanobis(row, mean, np.linalg.inv(covariance)) for row in features]
    np.testing.assert_allclose(reference.distances(features), expected, rtol=1e-6)
    assert reference.distances((mean + 6 * directions[:1]).astype(np.float32)) == pytest.approx(2.0, rel=1e-6)


def test_beyond_the_limit_there_is_a_reason() -> None:
    one = FeatureReference(np.zeros(2), np.array([[1.0, 0.0]]), np.array([1.0]), 1.0, limit=5.0)
    assert one.no_age_reasons(5.0) == ()
    (reason,) = one.no_age_reasons(7.25)
    assert reason.startswith("no age: ") and "distance 7.2, and 5.0 is the most" in reason
