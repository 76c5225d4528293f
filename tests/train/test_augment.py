"""Simulated scanners: ranges, reproducibility, and what they must not do to anatomy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from hz_runtime.model_space.recipe import Recipe
from hz_train.augment import Augmentation, bias_field, mixture, pose, scaled_as, scanner, tone_curve


@pytest.fixture
def volume():
    grid = np.indices((32, 32, 32)) - 15.5
    radius = np.sqrt((grid**2).sum(0))
    return np.where(radius < 13, 0.4 + 0.5 * (radius < 8), 0).astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_stays_in_range_and_outside_stays_empty(volume, seed):
    out = scanner(volume, np.random.default_rng(seed), Augmentation(blur=0))
    assert out.dtype == np.float32
    assert (float(out.min()), float(out.max())) == (0, 1)
    assert not out[volume == 0].any()


def test_same_seed_same_scanner(volume):
    a, b, c = (scanner(volume, np.random.default_rng(s), Augmentation.strong()) for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_tone_curves_are_monotone_and_keep_the_ends():
    x = np.linspace(0, 1, 500, dtype=np.float32)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y = tone_curve(x, float(np.exp(rng.uniform(-0.6, 0.6))), rng.uniform(-0.08, 0.08, 4))
        assert (np.diff(y) >= 0).all()
        assert (y[0], y[-1]) == (0, 1)


def test_bias_field_is_smooth_and_bounded_inside_the_brain(volume):
    brain = volume > 0
    for seed in range(6):
        log = np.log(bias_field(brain, 0.5, np.random.default_rng(seed)))
        assert log[brain].max() == pytest.approx(0.5, abs=1e-3)
        assert log[brain].min() == pytest.approx(-0.5, abs=1e-3)
        assert np.abs(np.diff(log, axis=0)[brain[1:] & brain[:-1]]).max() < 0.25


def test_pose_moves_little_and_keeps_the_size(volume):
    moved = pose(volume, np.random.default_rng(0))
    assert moved.shape == volume.shape
    assert abs(float(moved.sum() / volume.sum()) - 1) < 0.02


def test_pose_changes_size_within_its_limit(volume):
    limit = 0.2
    ratios = [
        np.log(
            np.count_nonzero(pose(volume, np.random.default_rng(s), scale=limit) > 0.2) / (volume > 0.2).sum()
        )
        for s in range(20)
    ]
    assert max(ratios) < 3 * limit + limit + 0.05
    assert min(ratios) < -0.1 < 0.1 < max(ratios)


def test_mixture_keeps_the_outline_and_stays_between_the_two(volume):
    other = np.roll(volume, 3, axis=0) * np.float32(0.8)
    mixed = mixture(volume, other, np.random.default_rng(0))
    assert mixed.dtype == np.float32
    assert not mixed[volume == 0].any()
    both = (volume > 0) & (other > 0.02)
    assert (mixed[both] <= np.maximum(volume, other)[both] + 1e-6).all()
    assert (mixed[both] >= np.minimum(volume, other)[both] - 1e-6).all()
    assert np.array_equal(mixed[~both], volume[~both])


def test_scans_that_meet_no_scanner_stay_and_others_are_scaled_by_the_recipes_rule() -> None:
    rng = np.random.default_rng(3)
    volume = np.zeros((24, 24, 24), np.float32)
    volume[4:20, 4:20, 4:20] = rng.uniform(0.3, 0.7, (16, 16, 16))
    volume /= 2 * np.median(volume[volume > 0])
    recipe = Recipe(intensity="median")
    strength = scaled_as(recipe, replace(Augmentation.strong(), unchanged=0.4))
    assert strength is not None and scaled_as(Recipe(), Augmentation()) == Augmentation()
    seen = [scanner(volume, np.random.default_rng(k), strength) for k in range(60)]
    same = [np.array_equal(one, volume) for one in seen]
    assert 12 < sum(same) < 36
    medians = [float(np.median(one[one > 0.1])) for one, kept in zip(seen, same, strict=True) if not kept]
    assert np.allclose(medians, 0.5, atol=0.03)  # twice the brain's median is 1
    brighter = replace(strength, unchanged=0.0, gain=0.25)
    seen = [scanner(volume, np.random.default_rng(k), brighter) for k in range(30)]
    medians = [float(np.median(one[one > 0.1])) for one in seen]
    assert 0.37 < min(medians) < 0.42 and 0.59 < max(medians) < 0.66  # half of exp(-.25) and exp(.25)
