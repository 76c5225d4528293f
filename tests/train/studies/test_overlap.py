"""Overlap scores, against cohorts whose overlap is known."""

from __future__ import annotations

import numpy as np
import pytest

from hz_train.studies.estimate import estimates
from hz_train.studies.overlap import Energy, Neighbours, distances, embed, principal

NAMES = ["a", "b", "c"]
COUNTS = (40, 20, 10)
SITES = [name for name, count in zip(NAMES, COUNTS, strict=True) for _ in range(count)]
SUBJECTS = [f"s{k}" for k in range(len(SITES))]


def cloud(seed: int, apart: float = 0.0) -> np.ndarray:
    """(70, 6) standard normal, every site moved by `apart` along an axis of its own."""
    x = np.random.default_rng(seed).standard_normal((len(SITES), 6))
    for k, site in enumerate(SITES):
        x[k, NAMES.index(site)] += apart
    return x


def purity(x, subjects=SUBJECTS, sites=SITES):
    return Neighbours.of(distances(x), sites, subjects, sorted(set(sites)))


def energy(x, reference=None, subjects=SUBJECTS, sites=SITES):
    return Energy.of(distances(x), sites, subjects, sorted(set(sites)), reference)


def test_mixed_sites_score_zero_on_average():
    ones = np.ones(len(SITES))
    found = np.array([[purity(cloud(s))(ones)[0], energy(cloud(s))(ones)[0]] for s in range(60)])
    mean, error = found.mean(axis=0), found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(mean) < 3 * error + 1e-3).all(), (mean, error)
    assert (found < 0).any(axis=0).all()  # no bias hidden by a floor at 0


def test_sites_apart_score_one():
    found = estimates(purity(cloud(0, 50.0)), SUBJECTS, resamples=50)
    assert all(m.value == pytest.approx(1) for m in found)
    assert (energy(cloud(0, 50.0))(np.ones(70)) > 0.9).all()


def test_scores_grow_with_distance_and_ignore_scale():
    ones = np.ones(70)
    grown = [purity(cloud(1, d))(ones)[0] for d in (0, 1, 2, 4)]
    assert grown == sorted(grown)
    for score in (purity, energy):
        np.testing.assert_allclose(
            score(cloud(1, 2.0))(ones), score(1e-3 * cloud(1, 2.0) + 7)(ones), atol=1e-6
        )


def test_energy_is_the_closed_form_of_two_points():
    """X always 0, Y 0 or 3 with equal chance: E|X-Y| = 1.5, E|X-X'| = 0, and 1.5 between different Y."""
    n = 400
    values = np.concatenate([np.zeros(n), np.tile([0.0, 3.0], n // 2)])[:, None]
    sites, subjects = ["x"] * n + ["y"] * n, [str(k) for k in range(2 * n)]
    within = 3 * 2 * (n / 2) ** 2 / (n * (n - 1))
    found = energy(values, subjects=subjects, sites=sites)(np.ones(2 * n))
    np.testing.assert_allclose(found, (3 - within) / 3, atol=1e-9)


def test_weights_are_the_same_as_repeated_rows():
    x, weights = cloud(3, 1.0), np.random.default_rng(3).integers(0, 3, 70)
    rows = np.repeat(np.arange(70), weights)
    sites, subjects = [SITES[r] for r in rows], [SUBJECTS[r] for r in rows]
    k = purity(x).k
    repeated = Neighbours.of(distances(x[rows]), sites, subjects, NAMES, k)
    np.testing.assert_allclose(purity(x)(weights * 1.0), repeated(np.ones(len(rows))), atol=1e-9)
    again = energy(x[rows], subjects=subjects, sites=sites)(np.ones(len(rows)))
    np.testing.assert_allclose(energy(x)(weights * 1.0), again, atol=1e-9)


def test_rescans_do_not_count_as_neighbours():
    """Everyone scanned four times in the same place: twins would make mixed sites look apart."""
    x = np.repeat(cloud(4), 4, axis=0) + 1e-6 * np.random.default_rng(4).standard_normal((280, 6))
    sites, subjects = [s for s in SITES for _ in range(4)], [s for s in SUBJECTS for _ in range(4)]
    ones = np.ones(280)
    honest = purity(x, subjects, sites)(ones)[0]
    fooled = purity(x, [str(k) for k in range(280)], sites)(ones)[0]
    assert abs(honest) < 0.25 and fooled > 0.5
    np.testing.assert_allclose(
        energy(x, subjects=subjects, sites=sites)(ones), energy(cloud(4))(np.ones(70)), atol=1e-4
    )


def test_energy_against_a_reference_leaves_other_pairs_out():
    x = cloud(5)
    x[-10:] += 100  # site c
    overall, a, b, c = energy(x, reference="a")(np.ones(70))
    assert a == overall and abs(b) < 0.1 and c > 0.9
    assert overall == pytest.approx((b + c) / 2)


def test_principal_components_keep_distances():
    x = np.random.default_rng(6).standard_normal((30, 4)) @ np.random.default_rng(7).standard_normal((4, 50))
    np.testing.assert_allclose(distances(principal(x, 4)), distances(x), atol=1e-9)
    sd = principal(x, 4).std(axis=0)
    assert (np.diff(sd) < 0).all()


def test_tsne_keeps_groups_together_and_repeats():
    pytest.importorskip("sklearn")
    x = cloud(8, 30.0)
    first = embed(x, seed=0)
    assert first.shape == (70, 2)
    np.testing.assert_array_equal(first, embed(x, seed=0))
    assert purity(first)(np.ones(70))[0] > 0.95
