"""Age-bias correction against known regressions."""

from __future__ import annotations

import numpy as np
import pytest

from hz_calibration.age_bias import fit_age_bias


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
