"""Bootstrap over subjects, against closed forms."""

from __future__ import annotations

import numpy as np

from hz_train.studies.estimate import balanced, by_site, estimates

SITES = ["a"] * 60 + ["b"] * 20
SUBJECTS = [f"s{k}" for k in range(80)]


def test_means_overall_and_by_site():
    values = np.random.default_rng(0).normal(0, 1, 80)
    found = estimates(by_site(values, SITES, ["a", "b"]), SUBJECTS)
    wanted = [values, values[:60], values[60:]]
    for metric, part in zip(found, wanted, strict=True):
        assert metric.value is not None and metric.ci95 is not None
        np.testing.assert_allclose(metric.value, part.mean(), atol=1e-12)
        half = 1.96 * part.std() / np.sqrt(part.size)  # the normal interval of a mean
        np.testing.assert_allclose(metric.ci95, [part.mean() - half, part.mean() + half], atol=0.2 * half)


def test_draws_are_those_that_published_audits_came_from():
    values = np.random.default_rng(3).normal(0, 1, 80)
    rng = np.random.default_rng([0, 11])
    order = np.argsort(SUBJECTS)  # subjects are drawn in order of name
    means = [values[order][rng.integers(0, 80, 80)].mean() for _ in range(2000)]
    found = estimates(by_site(values, SITES, ["a"]), SUBJECTS)
    whole = estimates(by_site(values, ["a"] * 80, ["a"]), SUBJECTS)
    np.testing.assert_allclose(whole[0].ci95, np.percentile(means, [2.5, 97.5]), atol=1e-12)
    assert found != whole


def test_rescans_do_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(0, 1, 80)
    once = estimates(by_site(values, SITES, ["a"]), SUBJECTS)[0]
    thrice = estimates(by_site(np.tile(values, 3), SITES * 3, ["a"]), SUBJECTS * 3)[0]
    np.testing.assert_allclose(once.ci95, thrice.ci95, atol=1e-12)


def test_ratio_of_means_is_not_a_mean_of_ratios():
    ratio = by_site(np.array([1.0, 9.0]), ["a", "a"], ["a"], below=np.array([10.0, 10.0]))
    np.testing.assert_allclose(ratio(np.ones(2)), [0.5, 0.5])
    np.testing.assert_allclose(ratio(np.array([2.0, 1.0])), [11 / 30, 11 / 30])


def test_balanced_accuracy_does_not_reward_the_larger_site():
    always_a = np.array([s == "a" for s in SITES], np.float64)
    found = estimates(balanced(always_a, SITES, ["a", "b"]), SUBJECTS)
    assert [m.value for m in found] == [0.5, 1.0, 0.0]
    assert found[0].ci95 == (0.5, 0.5)  # whatever the sites' shares of a resample


def test_what_is_missing_is_no_number():
    values = np.array([1.0, np.nan])
    overall, a, b = estimates(by_site(values, ["a", "b"], ["a", "b"]), ["p", "q"])
    assert (overall.value, a.value, b.value) == (1.0, 1.0, None)
    (alone, _) = estimates(by_site(np.ones(1), ["a"], ["a"]), ["p"])
    assert alone.value == 1 and alone.ci95 is None  # one subject has no interval
