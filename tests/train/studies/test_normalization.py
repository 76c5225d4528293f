"""Normalisations of single volumes against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="hz_train needs it")
pytest.importorskip("scipy", reason="truncated normal distributions")

from scipy import stats

from hz_runtime.errors import NoBrain
from hz_train.studies.baselines import foreground
from hz_train.studies.normalization import MeanLevel, WhiteStripe, normalizations, white_matter_peak

SHARES = {"csf": 0.15, "grey": 0.45, "white": 0.4}
LEVELS = {"csf": 0.35, "grey": 0.75, "white": 1.1}
SD = 0.04


def head(scale: float = 1.0, seed: int = 0) -> np.ndarray:
    """(60, 50, 40) three normal tissues in air."""
    rng = np.random.default_rng(seed)
    volume = np.zeros((60, 50, 40))
    inside = volume[10:50, 10:40, 5:35]
    names = rng.choice(list(SHARES), inside.shape, p=list(SHARES.values()))
    inside[...] = np.vectorize(LEVELS.get)(names) + SD * rng.standard_normal(inside.shape)
    return (scale * np.clip(volume, 0, None)).astype(np.float32)


def test_the_stripe_is_the_middle_of_white_matter() -> None:
    mean, sd = WhiteStripe().measured(head())
    # 5 % of the brain on either side of the peak: so much of white matter, a normal distribution cut off.
    beyond = stats.norm.ppf(0.5 + 0.05 / SHARES["white"])
    assert mean == pytest.approx(LEVELS["white"], abs=0.006)
    assert sd == pytest.approx(SD * stats.truncnorm(-beyond, beyond).std(), rel=0.05)


def test_white_stripe_brings_white_matter_to_the_references() -> None:
    method = WhiteStripe()
    method.learn(np.stack([method.measured(head(1, 1)), method.measured(head(1, 2))]))
    made = method.one(head(250.0, 3))
    assert np.median(made[made > 0.95]) == pytest.approx(LEVELS["white"], abs=0.01)
    assert not made[~foreground(head(250.0, 3))].any()
    np.testing.assert_allclose(made, method.one(head(1.0, 3)), atol=1e-3)  # whatever the scan's unit


def test_the_peak_is_white_matters_where_grey_matters_is_higher() -> None:
    rng = np.random.default_rng(0)
    tissue = np.sort(np.concatenate([rng.normal(0.7, 0.05, 60000), rng.normal(1.1, 0.05, 20000)]))
    assert white_matter_peak(tissue) == pytest.approx(1.1, abs=0.01)
    # A few bright vessels are no tissue.
    assert white_matter_peak(np.sort([*tissue, *rng.normal(1.6, 0.05, 1500)])) == pytest.approx(1.1, abs=0.02)
    with pytest.raises(NoBrain, match="one intensity"):
        white_matter_peak(np.ones(100))


def test_mean_level() -> None:
    method = MeanLevel()
    method.learn(np.array([[3.0], [5.0]]))
    made = method.one(head(7.0))
    assert made[foreground(head(7.0))].mean() == pytest.approx(4, rel=1e-4)


def test_all_of_them_take_volumes_of_any_shape_and_unit() -> None:
    for method in normalizations():
        method.learn(np.stack([method.measured(head(1, seed)) for seed in (0, 1)]))
        whole, part = method.one(head(30.0, 2)), method.one(head(30.0, 2)[5:55])
        np.testing.assert_allclose(part, whole[5:55], atol=2e-3)
        grey = (head(1, 2) > 0.6) & (head(1, 2) < 0.9)
        assert whole[grey].mean() == pytest.approx(LEVELS["grey"], abs=0.02), method.name
