"""Variation between and within sites, agreement of rescans, and distances of histograms, by closed forms."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="hz_train needs it")

from hz_train.studies.variation import (
    coefficients_of_variation,
    intraclass_correlation,
    site_distance,
    variation,
)

# Shrout & Fleiss 1979, Table 2: four judges rate six targets.
RATINGS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)


def test_the_published_example_of_icc() -> None:
    assert intraclass_correlation(RATINGS) == pytest.approx(0.29, abs=0.005)  # their Table 4: ICC(2,1)


def test_icc_of_perfect_agreement_and_of_a_judge_who_is_always_higher() -> None:
    values = np.arange(5.0)
    assert intraclass_correlation(np.stack([values, values], 1)) == pytest.approx(1)
    # Absolute agreement: a shift by d between two judges costs. MSR = 2 * var, MSE = 0, MSC = n d^2 / 2.
    var, n, d = values.var(ddof=1), 5, 2.0
    wanted = 2 * var / (2 * var + 2 * (n * d * d / 2) / n)
    assert intraclass_correlation(np.stack([values, values + d], 1)) == pytest.approx(wanted)
    assert np.isnan(intraclass_correlation(RATINGS[:1]))


def test_weights_are_people_drawn_again() -> None:
    weights = np.array([2, 0, 1, 3, 0, 1])
    again = np.repeat(RATINGS, weights, axis=0)
    assert intraclass_correlation(RATINGS, weights.astype(float)) == pytest.approx(
        intraclass_correlation(again)
    )
    values, sites = RATINGS[:, 0], list("aabbcc")
    drawn = coefficients_of_variation(values, sites, weights.astype(float))
    repeated = np.repeat(values, weights), list(np.repeat(sites, weights)), np.ones(7)
    np.testing.assert_allclose(drawn, coefficients_of_variation(*repeated))


def test_components_of_equal_groups_are_those_of_the_textbook() -> None:
    values, sites = np.array([9.0, 11, 10, 19, 21, 20]), list("aaabbb")
    total, between, within = coefficients_of_variation(values, sites, np.ones(6))
    # Mean squares: within 1, between 3 * 2 * 25 = 150; component (150 - 1) / 3.
    assert within == pytest.approx(100 * 1 / 15)
    assert between == pytest.approx(100 * np.sqrt(149 / 3) / 15)
    assert total == pytest.approx(100 * values.std(ddof=1) / 15)


def test_components_of_unequal_groups_are_found_on_average() -> None:
    rng = np.random.default_rng(0)
    sizes = [2, 3, 5, 8, 12, 20]
    sites = [str(k) for k, n in enumerate(sizes) for _ in range(n)]
    found = []
    for _ in range(600):
        level = rng.normal(100, 4, len(sizes))
        values = np.concatenate([rng.normal(m, 3, n) for m, n in zip(level, sizes, strict=True)])
        found.append(coefficients_of_variation(values, sites, np.ones(len(values)))[1:] ** 2)
    np.testing.assert_allclose(np.mean(found, axis=0), [16, 9], rtol=0.08)


def test_what_cannot_be_said_is_not_a_number() -> None:
    total, between, within = coefficients_of_variation(np.array([1.0, 2, 3]), list("aaa"), np.ones(3))
    assert total == pytest.approx(50) and np.isnan(between) and within == pytest.approx(50)
    total, between, within = coefficients_of_variation(np.array([1.0, 2, 3]), list("abc"), np.ones(3))
    assert total == pytest.approx(50) and np.isnan(between) and np.isnan(within)
    statistic = variation(np.array([1.0, np.nan, 3]), list("aab"))
    assert statistic(np.ones(3))[0] == pytest.approx(100 * np.sqrt(2) / 2)
    assert np.isnan(statistic(np.array([0.0, 5, 1]))).all()


def test_the_distance_of_shifted_histograms_is_the_shift() -> None:
    step = 0.01
    levels = np.arange(0, 3, step)
    shares = np.stack([np.clip(levels - shift, 0, 1) for shift in (0.2, 0.2, 0.5, 1.1)])
    statistic = site_distance(shares, step, ["a", "a", "b", "c"])
    assert statistic(np.ones(4))[0] == pytest.approx((0.3 + 0.9 + 0.6) / 3, abs=1e-9)
    assert statistic(np.array([1.0, 1, 1, 0]))[0] == pytest.approx(0.3, abs=1e-9)  # nobody of c was drawn
    assert np.isnan(statistic(np.array([1.0, 0, 0, 0]))[0])
