"""Scores and their intervals against hand computation and plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from hz_train.scores import (
    age_scores,
    areas,
    auc,
    by_subject,
    correlation,
    diagnosis_scores,
    draws,
    estimates,
    interval,
    score,
)

WHO = ["b", "a", "b", "c", "d", "a"]


def test_draws_are_of_whole_subjects_and_keep_every_stratum() -> None:
    strata = [1, 0, 1, 0, 1, 0]  # a and c; b and d
    seen = np.stack(list(draws(WHO, strata, resamples=5000)))
    a, b, c, d = seen[:, 1], seen[:, 0], seen[:, 3], seen[:, 4]
    np.testing.assert_array_equal(seen[:, 5], a)
    np.testing.assert_array_equal(seen[:, 2], b)
    np.testing.assert_array_equal(a + c, 2)
    np.testing.assert_array_equal(b + d, 2)
    # A subject of two is drawn 0, 1 or 2 times with probabilities 1/4, 1/2 and 1/4.
    for times in (a, b):
        np.testing.assert_allclose(np.bincount(times.astype(int)) / 5000, [0.25, 0.5, 0.25], atol=0.03)
    assert len({tuple(row) for row in seen}) == 9  # strata are drawn independently


def test_draws_are_those_that_published_intervals_came_from() -> None:
    values = np.random.default_rng(5).normal(0, 1, 30)
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, 30, 30)].mean() for _ in range(2000)]
    found = score(values.tolist(), "how")
    assert found["ci95"] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-12)
    assert found["value"] == pytest.approx(values.mean()) and (found["n"], found["how"]) == (30, "how")


def test_a_stratum_of_one_subject_gives_no_draws() -> None:
    assert not list(draws(["a", "a"])) and not list(draws(WHO, [0, 0, 0, 0, 1, 0]))
    assert estimates(lambda w: np.array([w.sum()]), ["a", "a"]) == [(2.0, None)]


def test_what_is_not_finite_is_left_out_and_no_number() -> None:
    assert interval([np.nan, 5.0, np.inf, 5.0]) == (5.0, 5.0)
    assert interval([np.nan]) is None and interval([]) is None
    found = estimates(lambda w: np.array([5.0 if w[0] else np.nan, np.nan, np.inf]), ["a", "b", "c"])
    assert found == [(5.0, (5.0, 5.0)), (None, None), (None, None)]


def test_scans_are_averaged_within_a_subject() -> None:
    np.testing.assert_allclose(by_subject([1, 2, 5, 7, 8, 6], WHO), [4, 3, 7, 8])


def test_a_correlation_against_resampled_scans() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(50, 10, 24)
    y = x + rng.normal(0, 8, 24)
    who = [f"s{k // 2}" for k in range(24)]
    value, ends = correlation(x, y, who)
    assert value == pytest.approx(np.corrcoef(x, y)[0, 1])
    rows = [np.flatnonzero(np.array(who) == name) for name in sorted(set(who))]
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        picked = np.concatenate([rows[i] for i in rng.integers(0, 12, 12)])
        found.append(np.corrcoef(x[picked], y[picked])[0, 1])
    assert ends == pytest.approx(np.percentile(found, [2.5, 97.5]), abs=1e-9)


def test_rounding_is_no_correlation() -> None:
    ages = np.linspace(20, 80, 40)
    said = np.full(40, np.float32(50.1))
    said[20:] = np.nextafter(said[0], np.float32(100))  # by one step of float32
    assert correlation(ages, said.astype(np.float64), [str(k) for k in range(40)]) == (None, None)


@pytest.mark.parametrize("seed", range(20))
def test_auc_against_every_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 30))
    values = np.round(rng.normal(0, 1, n), 1)  # with ties
    positive = rng.random(n) < 0.4
    positive[:2] = [True, False]
    weights = rng.integers(0, 3, n).astype(float) + 0.5
    won = total = 0.0
    plain_won = plain_total = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            win = 1.0 if values[i] > values[j] else 0.5 if values[i] == values[j] else 0.0
            won, total = won + win * weights[i] * weights[j], total + weights[i] * weights[j]
            plain_won, plain_total = plain_won + win, plain_total + 1
    assert auc(values, positive) == pytest.approx(plain_won / plain_total)
    assert auc(values, positive, weights) == pytest.approx(won / total)
    assert auc(-values, positive) == pytest.approx(1 - plain_won / plain_total)


def test_auc_of_one_class_is_not_a_number() -> None:
    assert np.isnan(auc(np.array([1.0, 2.0]), np.array([True, True])))
    assert np.isnan(auc(np.array([1.0, np.nan, 2.0]), np.array([True, True, False])))


def test_areas_are_of_subjects_means_and_compare_the_same_subjects() -> None:
    positive = np.array([1, 1, 1, 0, 0, 0])
    who = ["p", "p", "q", "r", "s", "s"]
    said = np.array([0.9, 0.1, 0.7, 0.6, 0.2, 0.4])  # means 0.5 and 0.7 against 0.6 and 0.3: 3 of 4 pairs
    (value, ends), (change, between) = areas(positive, said, who, before=said)
    assert (value, change, between) == (0.75, 0.0, (0.0, 0.0))
    # Of 16 equally likely resamples, 1 has both 0.5s and both 0.6s: 0.  (r, r) with (q, q), 1, and so on.
    assert ends == (0.0, 1.0)
    assert areas([1, 1], [0.2, 0.3], ["a", "b"], [0.1, 0.2]) == [(None, None), (None, None)]


def test_diagnosis_scores_count_subjects() -> None:
    positive = np.array([True, True, False, False, False])
    probability = np.array([0.9, 0.4, 0.1, 0.6, 0.2])
    scores = diagnosis_scores(positive, probability, ["p", "p", "q", "r", "s"], "held out")
    assert scores["auc"]["value"] == 1 and scores["auc"]["n"] == 4  # p's mean is 0.65
    assert scores["auc"]["ci95"] is None  # of a single patient
    assert scores["accuracy"]["value"] == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    assert scores["accuracy_of_the_larger_group"]["value"] == pytest.approx(3 / 4)


def test_the_larger_group_is_of_subjects() -> None:
    def accuracy(positive: list[int], who: str) -> float:
        labels = np.array(positive, bool)
        found = diagnosis_scores(labels, np.full(len(who), 0.4), list(who), "")
        return found["accuracy_of_the_larger_group"]["value"]

    assert accuracy([1, 1, 1, 0, 0], "pppqr") == pytest.approx(2 / 3)  # three scans, but one patient of three
    assert accuracy([1, 1, 0, 0], "pqrs") == 0.5


def test_the_mean_age_that_must_be_beaten_is_that_of_the_others() -> None:
    ages = np.array([20.0, 40.0, 44.0, 70.0])
    found = age_scores(ages, ages + np.array([1, 2, -4, 3]), ["a", "b", "b", "c"], "")
    without = [154 / 3 - 20, (5 + 1) / 2, 70 - 104 / 3]  # b's two scans against 45
    assert found["mae_of_predicting_the_mean_age"]["value"] == pytest.approx(np.mean(without))
    assert found["mae_years"]["value"] == pytest.approx((1 + 3 + 3) / 3)
    assert found["mse_years2"]["value"] == pytest.approx((1 + 10 + 9) / 3)
    assert {row["n"] for row in found.values()} == {3}


def test_one_person_has_no_interval_and_no_others() -> None:
    found = age_scores(np.array([50.0, 52.0]), np.array([55.0, 55.0]), ["a", "a"], "")
    assert (found["mae_years"]["value"], found["mae_years"]["ci95"]) == (4.0, None)
    for name in ("mae_of_predicting_the_mean_age", "pearson_r"):
        assert (found[name]["value"], found[name]["ci95"]) == (None, None)
