"""Age-bias correction against known regressions."""

from __future__ import annotations

import numpy as np
import pytest

from hz_calibration.age_bias import fit_age_bias, from_held_out, regression_to_mean
from hz_runtime.errors import UsageError


def test_known_dilution_is_taken_out():
    ages = np.random.default_rng(0).uniform(20, 80, 400)
    raw = 0.5 * ages + 25 + np.random.default_rng(1).normal(0, 2, 400)
    bias = fit_age_bias(ages, raw, "simulated")
    assert (bias.slope, bias.intercept) == (pytest.approx(0.5, abs=0.02), pytest.approx(25, abs=1))
    corrected = bias.corrected(raw)
    assert np.polyfit(ages, corrected, 1)[0] == pytest.approx(1, abs=1e-6)
    assert np.corrcoef(corrected - ages, ages)[0, 1] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("slope", [0.0, 0.1, -0.5])
def test_no_correction_where_it_would_do_harm(slope):
    ages = np.linspace(20, 80, 40)
    assert fit_age_bias(ages, slope * ages + 40, "x") is None
    assert fit_age_bias(ages[:5], ages[:5], "x") is None
    assert fit_age_bias(np.full(40, 30.0), ages, "x") is None
    assert fit_age_bias(np.full(11, 30.1), ages[:11], "x") is None  # their rounded mean is not quite 30.1
    assert fit_age_bias(ages, np.where(ages < 21, np.nan, ages), "x") is None


def test_the_pull_to_the_mean_is_reported_on_subjects_the_correction_never_saw():
    ages = np.random.default_rng(2).uniform(20, 80, 60)
    raw = 0.6 * ages + 20 + np.random.default_rng(3).normal(0, 4, 60)
    found = regression_to_mean(ages, raw)
    assert found.slope_before == pytest.approx(np.polyfit(ages, raw, 1)[0])
    assert found.slope_after == pytest.approx(1, abs=0.05)
    assert found.slope_after != pytest.approx(1, abs=1e-6)  # that would be the fit judging itself
    assert found.mae_before == pytest.approx(np.abs(raw - ages).mean())
    # By hand for one subject: corrected with the line through all the others.
    slope, intercept = np.polyfit(ages[1:], raw[1:], 1)
    corrected = [(raw[0] - intercept) / slope]
    for k in range(1, 60):
        s, i = np.polyfit(np.delete(ages, k), np.delete(raw, k), 1)
        corrected.append((raw[k] - i) / s)
    assert found.mae_after == pytest.approx(np.abs(np.array(corrected) - ages).mean())
    assert "60 held-out subjects" in str(found)


def test_no_report_where_there_is_no_correction():
    ages = np.linspace(20, 80, 40)
    assert regression_to_mean(ages, 0.1 * ages + 40) is None
    assert regression_to_mean(ages[:5], ages[:5]) is None


def test_predictions_of_subjects_that_were_trained_on_are_refused():
    ages = np.linspace(20, 80, 12)
    subjects = [f"sub-{n}" for n in range(12)]
    halves = [
        (subjects[:6], subjects[6:]),
        (subjects[6:], subjects[:6]),
    ]  # two folds: everybody is held out once
    assert fit_age_bias(ages, ages, "x", folds=halves) is not None
    with pytest.raises(UsageError, match=r"1 of 6 subjects were seen .* sub-4"):
        fit_age_bias(ages, ages, "x", folds=[(subjects[:6], {"sub-4", "sub-99"})])


def rescanned(people: int, scans: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(people)
    ages = np.repeat(rng.uniform(20, 80, people), scans) + np.tile(np.arange(scans), people)
    own = np.repeat(rng.normal(0, 6, people), scans)  # a subject's scans err alike
    raw = 0.5 * ages + 25 + own + rng.normal(0, 1, people * scans)
    return ages, raw, [f"s{k // scans}" for k in range(people * scans)]


def test_rescans_make_no_subjects():
    ages, raw, who = rescanned(9, 4)
    assert fit_age_bias(ages, raw, "x") is not None  # 36 scans, if each were of somebody else
    assert fit_age_bias(ages, raw, "x", subjects=who) is None
    assert regression_to_mean(ages, raw, who) is None
    ages, raw, who = rescanned(12, 4)
    slope, intercept = np.polyfit(ages, raw, 1)
    bias = fit_age_bias(ages, raw, "x", subjects=who)
    assert (bias.slope, bias.intercept, bias.n) == (pytest.approx(slope), pytest.approx(intercept), 12)


def test_a_subject_is_left_out_with_all_its_scans():
    ages, raw, who = rescanned(12, 3)
    ages, raw, who = ages[:-1], raw[:-1], who[:-1]  # one subject has two scans
    corrected = np.empty_like(raw)
    for name in set(who):
        own = np.array([one == name for one in who])
        slope, intercept = np.polyfit(ages[~own], raw[~own], 1)
        corrected[own] = (raw[own] - intercept) / slope

    def error(said):
        return np.mean([np.mean([abs(s - a) for s, a, w in zip(said, ages, who, strict=True) if w == one])
                        for one in set(who)])  # fmt: skip

    found = regression_to_mean(ages, raw, who)
    assert found.n == 12 and found.slope_before == pytest.approx(np.polyfit(ages, raw, 1)[0])
    assert found.slope_after == pytest.approx(np.polyfit(ages, corrected, 1)[0])
    assert (found.mae_before, found.mae_after) == (pytest.approx(error(raw)), pytest.approx(error(corrected)))
    assert found.slope_after != pytest.approx(regression_to_mean(ages, raw).slope_after, abs=1e-4)


def test_a_checkpoints_subjects_are_counted():
    ages, raw, who = rescanned(12, 3)
    bias, pull = from_held_out({"age": ages.tolist(), "raw": raw.tolist(), "subjects": who, "how": "2 folds"})
    assert (bias, pull) == (
        fit_age_bias(ages, raw, "least squares on held-out predictions, 2 folds", subjects=who),
        regression_to_mean(ages, raw, who),
    )
    assert bias.n == pull.n == 12
    old, _ = from_held_out({"age": ages.tolist(), "raw": raw.tolist(), "how": "2 folds"})
    assert old.n == 36  # checkpoints of before "subjects" do not say who is who
    with pytest.raises(ValueError, match="36 ages and 35 subjects"):
        from_held_out({"age": ages.tolist(), "raw": raw.tolist(), "subjects": who[1:], "how": "2 folds"})


def test_a_line_that_hangs_on_one_subject_is_not_judged():
    ages = np.array([30.0] * 9 + [50.0])
    assert fit_age_bias(ages, ages, "x") is not None
    assert regression_to_mean(ages, ages) is None  # without the one, everybody is 30
