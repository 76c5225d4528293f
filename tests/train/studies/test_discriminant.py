"""Sites told from a few numbers: against refits by scikit-learn, and what two normal distributions give."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest

pytest.importorskip("torch", reason="hz_train needs it")
pytest.importorskip("sklearn", reason="discriminants are scikit-learn's")

from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hz_train.studies.discriminant import pairs_told, target_auc, told_sites


def people(n: int) -> list[str]:
    return [f"p{k}" for k in range(n)]


def test_pairs_are_told_as_by_refits_without_them() -> None:
    rng = np.random.default_rng(0)
    ours, rest = rng.normal(0.4, 1, (6, 3)), rng.normal(0, 1, (9, 3))
    found = pairs_told(ours, rest)
    for i in range(6):
        for j in range(9):
            kept = np.concatenate([np.delete(ours, i, 0), np.delete(rest, j, 0)])
            model = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5])
            model.fit(kept, [1] * 5 + [0] * 8)
            a, b = model.decision_function(np.stack([ours[i], rest[j]]))
            assert found[i, j] == (a > b)


def test_the_area_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(1)
    n, apart = 300, 1.2
    features = rng.normal(0, 1, (2 * n, 3))
    features[:n, 1] += apart
    of_target = np.arange(2 * n) < n
    value, ends = target_auc(features, of_target, people(2 * n), 100)
    assert value == pytest.approx((1 + erf(apart / 2)) / 2, abs=0.03)  # Phi(d / sqrt 2)
    assert ends[0] < value < ends[1]


def test_what_cannot_be_told_has_an_area_of_one_half() -> None:
    rng = np.random.default_rng(2)
    of_target = np.arange(30) < 10
    areas = [target_auc(rng.normal(0, 1, (30, 4)), of_target, people(30), 0)[0] for _ in range(60)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.035)


def test_scans_of_one_person_count_once_and_few_people_not_at_all() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(0, 1, (12, 2))
    of_target = np.arange(12) < 5
    once = target_auc(features, of_target, people(12), 0)
    twice = np.concatenate([features, features]), np.tile(of_target, 2), people(12) * 2
    assert target_auc(*twice, 0)[0] == pytest.approx(once[0])
    assert target_auc(features, np.arange(12) < 2, people(12), 0) is None


def test_sites_far_apart_are_told_and_small_ones_left_out() -> None:
    rng = np.random.default_rng(4)
    sites = [*("a" * 8), *("b" * 8), "c", "c"]
    features = rng.normal(0, 0.1, (18, 2)) + np.array([{"a": 0, "b": 3, "c": 9}[s] for s in sites])[:, None]
    rows, right = told_sites(features, sites, people(18))
    assert rows == list(range(16)) and right.all()
    assert told_sites(features[:8], sites[:8], people(8))[0] == []


def test_a_person_is_named_by_a_fit_on_others_only() -> None:
    """Each person's numbers are their own; whoever was in the fit would be told by them."""
    rng = np.random.default_rng(5)
    who = [f"p{k // 4}" for k in range(32)]
    features = rng.normal(0, 1, (8, 2)).repeat(4, axis=0) + rng.normal(0, 0.01, (32, 2))
    sites = ["ab"[k // 4 % 2] for k in range(32)]
    _, right = told_sites(features, sites, who)
    assert right.mean() < 0.8
