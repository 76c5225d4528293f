"""Anatomy against spheres, whose volumes are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.model_space.anatomy import MEASURES, anatomy, no_age_reasons
from hz_runtime.model_space.recipe import Recipe


def head(ventricle: float, fluid: float = 0.2) -> np.ndarray:
    """A brain of radius 24 voxels with a ball of fluid, radius `ventricle`, in its middle."""
    at = np.indices((64, 64, 64)).astype(np.float32) - 31.5
    distance = np.sqrt((at**2).sum(0))
    grid = np.where(distance <= 24, np.float32(0.8), np.float32(0.0))
    return np.where(distance <= ventricle, np.float32(fluid), grid)


@pytest.mark.parametrize("fluid", [0.2, 0.0])  # 0: masks of tissue alone cut ventricles out
def test_shares_are_those_of_spheres(fluid: float) -> None:
    grid = head(8.0, fluid)
    found = anatomy(grid, grid, Recipe())
    voxel = abs(np.linalg.det(Recipe().grid_affine[:3, :3])) / 1000
    assert found["outline_cm3"] == pytest.approx(4 / 3 * np.pi * 24**3 * voxel, rel=0.03)
    assert found["fluid_share"] == pytest.approx(8**3 / 24**3, rel=0.1)
    # Four face-to-face steps leave a solid between the ball of radius 20 and that of 24 - 4 / sqrt(3).
    assert 8**3 / 21.7**3 * 0.9 < found["deep_fluid_share"] < 8**3 / 20**3 * 1.1
    assert found["both_fluid_shares"] == found["deep_fluid_share"] + found["fluid_share"]


def test_brightness_does_not_matter_and_a_brain_without_depth_is_measured() -> None:
    grid = head(8.0)
    assert anatomy(grid * np.float32(0.5), grid, Recipe()) == anatomy(grid, grid, Recipe())
    thin = np.zeros((64, 64, 64), np.float32)
    thin[30:33] = 0.5
    thin[31] = 0.6
    assert anatomy(thin, thin, Recipe())["deep_fluid_share"] == 0.0


def test_who_is_beyond_the_training_gets_no_age() -> None:
    limits = {name: {"min": 0.1, "max": 0.2, "mean": 0.15, "sd": 0.1} for name in MEASURES}
    usual = dict.fromkeys(MEASURES, 0.15)
    assert no_age_reasons(usual, limits) == () == no_age_reasons({"deep_fluid_share": 9.0}, {})
    (reason,) = no_age_reasons({**usual, "deep_fluid_share": 0.26}, limits)
    assert reason == (
        "no age: fluid deep in the brain (ventricles) is 26 %, 10 to 20 % in the people that the age network "
        "was trained on"
    )
    assert no_age_reasons({**usual, "deep_fluid_share": 0.24}, limits) == ()  # within half an SD
    assert no_age_reasons({**usual, "fluid_share": 0.0}, limits) == ()  # a tight mask, no old brain
    assert len(no_age_reasons({**usual, "outline_cm3": -0.01}, limits)) == 1
