"""Age intervals against the closed form, a second implementation, and what they promise: coverage."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from hz_calibration.age_bias import fit_age_bias
from hz_calibration.age_interval import (
    CROSS,
    LEVEL,
    SPLIT,
    Calibration,
    calibrate,
    conformal_quantile,
    from_held_out,
    least_subjects,
    wilson,
)
from hz_runtime.errors import UsageError


def names(n: int) -> list[str]:
    return [f"s{k:03d}" for k in range(n)]


def exact_quantile(scores: list[float], subjects: list[str], level: Fraction) -> float:
    """The weighted quantile by its definition, in exact fractions, one score at a time."""
    everyone = sorted(set(subjects))
    reached = Fraction(0)
    for score, subject in sorted(zip(scores, subjects, strict=True)):
        reached += Fraction(1, subjects.count(subject) * (len(everyone) + 1))
        if reached >= level:
            return score
    return math.inf


@pytest.mark.parametrize("n", [8, 9, 10, 18, 19, 20, 29, 64, 99, 100, 499])
def test_with_one_scan_each_the_rank_is_that_of_split_conformal(n: int) -> None:
    scores = np.random.default_rng(n).exponential(5, n)
    k = -((-9 * (n + 1)) // 10)  # ceil(0.9 (n + 1)), in integers
    expected = np.sort(scores)[k - 1] if k <= n else math.inf
    assert conformal_quantile(scores, np.arange(n), 0.9) == expected


def test_rescans_weigh_like_the_exact_definition() -> None:
    rng = np.random.default_rng(3)
    for level in (Fraction(4, 5), Fraction(9, 10), Fraction(19, 20)):
        for _ in range(60):
            ids = rng.integers(0, 25, 60)
            scores = rng.exponential(5, 60).round(int(rng.integers(0, 4)))  # ties too
            expected = exact_quantile(scores.tolist(), [str(i) for i in ids], level)
            assert conformal_quantile(scores, ids, float(level)) == expected


def test_a_much_scanned_subject_counts_once() -> None:
    scores = np.arange(1.0, 41.0)
    alone = conformal_quantile(scores, np.arange(40), 0.9)
    many = np.concatenate([scores, np.full(400, 1000.0)])  # 400 rescans of a 41st, all far off
    who = np.concatenate([np.arange(40), np.full(400, 40)])
    assert conformal_quantile(many, who, 0.9) == 38.0  # rank ceil(0.9 * 42) = 38
    assert alone == 37.0


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_fewest_subjects(level: float) -> None:
    n = least_subjects(level)
    scores = np.arange(float(n))
    assert conformal_quantile(scores, np.arange(n), level) < scores.max()
    assert conformal_quantile(scores[1:], np.arange(n - 1), level) in (scores.max(), math.inf)
    assert least_subjects(0.9) == 19


def test_too_few_subjects_give_a_reason_and_no_interval() -> None:
    ages = np.linspace(20, 80, 18)
    said = calibrate(ages, ages + 1, names(18), "x")
    assert isinstance(said, str) and "18 held-out subjects are too few for a 90% interval" in said
    thrice = calibrate(np.repeat(ages, 3), np.repeat(ages, 3) + 1, names(18) * 3, "x")
    assert isinstance(thrice, str) and thrice.startswith("18 held-out")  # scans do not make subjects
    more = np.linspace(20, 80, 19)
    assert isinstance(calibrate(more, more + 1, names(19), "x"), Calibration)


def drawn(rng: np.random.Generator, n: int, scans: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ages, raw, subject): predictions pulled to the mean, errors shared within a subject, skewed."""
    who = np.repeat(np.arange(n), scans)
    ages = rng.uniform(20, 80, n)
    own = rng.gamma(2, 3, n) - 6
    return ages[who], 0.6 * ages[who] + 20 + own[who] + rng.normal(0, 2, n * scans), who


@pytest.mark.parametrize(("scans", "correct"), [(1, False), (1, True), (3, False), (3, True)])
def test_new_subjects_are_covered(scans: int, correct: bool) -> None:
    """Over 80 cohorts of 60, the share of new subjects inside is nominal within the binomial error."""
    inside = total = 0
    for seed in range(80):
        rng = np.random.default_rng([seed, scans])
        ages, raw, who = drawn(rng, 60, scans)
        found = calibrate(ages, raw, [str(w) for w in who], "x", correct=correct)
        assert isinstance(found, Calibration)
        new_ages, new_raw, _ = drawn(rng, 20)
        if correct:
            bias = fit_age_bias(ages, raw, "x")
            assert bias is not None and found.corrected is not None
            off = np.abs(bias.corrected(new_raw) - new_ages) <= found.corrected.half_width
        else:
            off = np.abs(new_raw - new_ages) <= found.raw.half_width
        inside, total = inside + off.sum(), total + off.size
    # Calibration adds Beta(k, n + 1 - k) scatter to the binomial one: SD 0.038 a cohort of 60.
    sd = math.sqrt((0.038**2 + 0.09 / 20) / 80)
    assert LEVEL - 3 * sd <= inside / total <= LEVEL + 1 / 61 + 3 * sd


def test_corrected_errors_are_those_of_lines_that_leave_their_subject_out() -> None:
    ages, raw, who = drawn(np.random.default_rng(5), 40, 2)
    found = calibrate(ages, raw, [f"{w:02d}" for w in who], "x")
    assert isinstance(found, Calibration) and found.corrected is not None
    errors = np.empty(80)
    for k in range(80):
        others = who != who[k]
        slope, intercept = np.polyfit(ages[others], raw[others], 1)
        errors[k] = abs((raw[k] - intercept) / slope - ages[k])
    expected = exact_quantile(errors.tolist(), [str(w) for w in who], Fraction(9, 10))
    assert found.corrected.half_width == pytest.approx(expected, rel=1e-9)
    mean = [abs(ages[who != w].mean() - a) for w, a in zip(who, ages, strict=True)]
    assert found.half_width_of_mean_age == pytest.approx(
        exact_quantile(mean, [str(w) for w in who], Fraction(9, 10))
    )


def test_measured_coverage_leaves_out_what_one_network_predicted() -> None:
    """By hand: every fold in the interval of the others. One fold's network is far off, and it shows."""
    ages, raw, _ = drawn(np.random.default_rng(6), 80)
    raw[:20] += 60
    who = names(80)
    parts = [who[f * 20 : f * 20 + 20] for f in range(4)]
    folds = [(part, sorted(set(who) - set(part))) for part in parts]
    found = calibrate(ages, raw, who, "x", folds=folds, correct=False)
    errors = np.abs(raw - ages)
    inside = []
    for f in range(4):
        apart = np.arange(80) // 20 == f
        reach = np.sort(errors[~apart])[math.ceil(0.9 * 61) - 1]
        inside += (errors[apart] <= reach).tolist()
    assert isinstance(found, Calibration)
    coverage = found.raw.coverage
    assert coverage.value == np.mean(inside) and coverage.value < 0.85
    assert "each of 4 folds" in coverage.how and coverage.n == 80
    by_hand = [np.mean(np.array(inside)[part]) for part in np.array_split(np.argsort(ages), 3)]
    assert [third.coverage for third in found.raw.by_age] == pytest.approx(by_hand)
    assert found.method == CROSS


def test_one_split_is_called_what_it_is() -> None:
    ages, raw, _ = drawn(np.random.default_rng(7), 30)
    found = calibrate(ages, raw, names(30), "30% held out", folds=[(names(30), ["other"])])
    assert isinstance(found, Calibration) and found.method == SPLIT
    assert found.raw.coverage.value == math.ceil(0.9 * 30) / 30  # left out one by one: by arithmetic


def test_a_correction_that_hangs_on_one_subject_has_no_interval() -> None:
    ages = np.append(np.linspace(40, 42, 24), 90.0)
    raw = np.append(np.full(24, 50.0) + np.linspace(0.5, -0.5, 24), 80.0)
    assert fit_age_bias(ages, raw, "x") is not None
    found = calibrate(ages, raw, names(25), "x")
    assert isinstance(found, Calibration) and found.corrected is None


def test_wilson_is_the_score_interval() -> None:
    for hits, n in ((58, 64), (0, 20), (20, 20), (9, 10)):
        for end in wilson(hits / n, n):
            spread = abs(hits / n - end)  # the ends solve |p - end| = z sqrt(end (1 - end) / n)
            assert spread == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-6)


def test_subjects_that_were_trained_on_are_refused() -> None:
    ages, raw, _ = drawn(np.random.default_rng(8), 30)
    with pytest.raises(UsageError, match=r"1 of 30 subjects were seen"):
        calibrate(ages, raw, names(30), "x", folds=[(names(30), ["s004"])])
    with pytest.raises(ValueError, match="30 ages"):
        calibrate(ages, raw, names(29), "x")


def test_older_checkpoints_say_by_their_count_whether_scans_are_rescans() -> None:
    ages, raw, _ = drawn(np.random.default_rng(9), 30)
    kept = {"age": ages.tolist(), "raw": raw.tolist(), "how": "folds"}
    found = from_held_out(kept, 30, correct=False)
    assert isinstance(found, Calibration)
    assert found.raw == calibrate(ages, raw, names(30), "folds", correct=False).raw  # type: ignore[union-attr]
    for n in (29, None):
        said = from_held_out(kept, n, correct=False)
        assert isinstance(said, str) and "does not say which" in said
    twice = {**kept, "subjects": [f"s{k // 2}" for k in range(30)]}
    assert "15 held-out subjects" in str(from_held_out(twice, None, correct=False))


def test_predictions_that_are_no_numbers_give_no_interval() -> None:
    ages, raw, _ = drawn(np.random.default_rng(10), 30)
    raw[3] = np.nan
    assert calibrate(ages, raw, names(30), "x") == "Some held-out predictions are not numbers."
