"""Poses near the best fit are led to one and the same place; other things stay where they are."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.model_space.resample import resample
from hz_runtime.preparation.refinement import refined_pose
from hz_runtime.preparation.registration import mean_distance
from hz_runtime.preparation.template import mni152, points
from small_heads import SHAPE, fruit, grid, made_head, moved

MOVE = moved((6.0, -4.0, 8.0), (4.0, -3.0, 5.0))


def off(seed: int) -> np.ndarray:
    """(4, 4): some millimetres, degrees and hundredths from the identity."""
    rng = np.random.default_rng(seed)
    change = np.eye(4)
    change[:3, :3] += rng.normal(0, 0.02, (3, 3))
    change[:3, 3] = rng.uniform(-3, 3, 3)
    return change


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Mean mm over the template's brain between where it comes from."""
    return mean_distance(np.linalg.inv(one), np.linalg.inv(other), points(mni152().mask, mni152().affine))


@pytest.mark.parametrize("bare", [True, False])
def test_starts_some_millimetres_apart_end_at_the_truth(bare: bool) -> None:
    template, affine = mni152(), grid()
    data = resample(template.data, np.linalg.inv(MOVE) @ template.affine, SHAPE, affine)
    if not bare:
        data = made_head(np.linalg.inv(MOVE))[0]
    ends = [refined_pose(data, affine, off(seed) @ MOVE, template, bare=bare) for seed in (1, 2)]
    assert min(apart(off(seed) @ MOVE, MOVE) for seed in (1, 2)) > 1.5
    assert apart(*ends) < 0.05
    assert max(apart(end, MOVE) for end in ends) < (0.1 if bare else 0.5)


def test_neither_field_nor_ventricles_pull_at_it() -> None:
    template = mni152()
    at = points(np.ones_like(template.mask), template.affine).reshape(*template.mask.shape, 3)
    field = np.exp(at @ np.array([0.004, -0.003, 0.005]))
    ventricle = (np.linalg.norm((at - [0.0, -15.0, 15.0]) / [35.0, 45.0, 25.0], axis=3) < 1) & template.mask
    old = np.asarray(np.where(ventricle, 0.15, template.data) * field, np.float32)
    end = refined_pose(old, template.affine, off(3), template, bare=True)
    assert apart(end, np.eye(4)) < 0.6


@pytest.mark.parametrize("case", ["nothing", "one material", "fruit", "opposite contrast"])
def test_what_does_not_fit_stays_within_reach(case: str) -> None:
    template = mni152()
    data, affine = {
        "nothing": (np.zeros_like(template.data), template.affine),
        "one material": (template.mask, template.affine),
        "fruit": fruit(),
        "opposite contrast": (np.where(template.mask, 1.2 - template.data, 0), template.affine),
    }[case]
    end = refined_pose(np.asarray(data, np.float32), affine, np.eye(4), template, bare=True)
    assert np.isfinite(end).all()
    assert apart(end, np.eye(4)) < 15
