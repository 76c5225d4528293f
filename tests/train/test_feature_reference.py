"""The reference of an age network's features: against the covariance, and its limit against quantiles."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")
import torch

from hz_runtime.bundle.age_features import parse_age_features
from hz_train.age_cnn import AgeCNN
from hz_train.feature_reference import (
    LEAST_REST,
    MOST_DIRECTIONS,
    QUANTILE,
    SLACK,
    feature_reference,
    stored_reference,
)


def made_up(n: int, size: int = 12) -> np.ndarray:
    rng = np.random.default_rng(8)
    turn = np.linalg.qr(rng.normal(size=(size, size)))[0]
    found: np.ndarray = rng.normal(size=(n, size)) * np.linspace(5, 1, size) @ turn
    return found


def test_variances_are_the_covariances_and_none_is_lost() -> None:
    features = made_up(60)
    reference = feature_reference(features)
    assert reference is not None
    values = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1]
    np.testing.assert_allclose(reference.variances, values[:MOST_DIRECTIONS])
    assert reference.rest == pytest.approx(values[MOST_DIRECTIONS:].mean())
    mean_square = np.square(reference.distances(features.astype(np.float32))).mean()
    assert mean_square == pytest.approx(12 * 59 / 60, rel=1e-4)  # as of any sample by its own covariance


def test_directions_that_nobody_varies_in_are_not_divided_by_nothing() -> None:
    features = made_up(16)
    features[:, 3:] = 1.0
    reference = feature_reference(features[:, :6])
    assert reference is not None
    variance = features.var(axis=0, ddof=1).sum() / 6
    assert reference.rest == pytest.approx(LEAST_REST * variance)
    one_off = features[:1, :6].astype(np.float32) + np.array([0, 0, 0, 0, 0, 1], np.float32)
    before, after = reference.distances(np.concatenate([features[:1, :6].astype(np.float32), one_off]))
    assert after**2 - before**2 == pytest.approx(1 / reference.rest, rel=1e-3)


def test_what_is_stored_is_what_a_bundle_reads() -> None:
    features, held_out = made_up(40), np.linspace(1, 5, 81).tolist()
    reference = feature_reference(features)
    stored = stored_reference(reference, held_out)
    assert stored["limit"] == pytest.approx(SLACK * np.quantile(held_out, QUANTILE), rel=1e-3)
    read = parse_age_features(stored, "here")
    assert read is not None and reference is not None and read.limit == stored["limit"]
    some = made_up(9)[:, ::-1].astype(np.float32)
    np.testing.assert_allclose(read.reference().distances(some), reference.distances(some), rtol=1e-4)


def test_too_few_and_what_does_not_vary_give_no_reference() -> None:
    assert feature_reference(made_up(7)) is None and feature_reference(np.ones((20, 6))) is None
    reference = feature_reference(made_up(20))
    assert stored_reference(reference, [1.0] * 7) == {} == stored_reference(None, [1.0] * 20)


def test_features_are_all_that_an_age_is_computed_from() -> None:
    network = AgeCNN(width=2).eval()
    network.set_ages(torch.tensor([30.0, 50.0]))
    volumes = torch.rand(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, ages = network.last_features(volumes), network(volumes)
        last = network.head[-1]
        expected = (features @ last.weight.T + last.bias) * network.sd + network.mean
    assert features.shape == (2, 64)
    np.testing.assert_allclose(ages.numpy(), expected.numpy(), rtol=1e-5)
