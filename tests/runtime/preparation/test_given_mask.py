"""What a file given as a brain mask is taken for: masks hard and soft, and what is none."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.errors import UsageError
from hz_runtime.preparation.given_mask import decided

ndimage = pytest.importorskip("scipy.ndimage")


def ball() -> np.ndarray:
    """A ball of radius 20 in a box of 60: 33.5 thousand voxels."""
    at = np.indices((60, 60, 60)) - 29.5
    return np.asarray(np.linalg.norm(at, axis=0) < 20)


SOFT = {
    "255": lambda b: b * 255.0,
    "probability": lambda b: ndimage.gaussian_filter(b * 1.0, 1.5),
    "percent": lambda b: np.rint(ndimage.gaussian_filter(b * 100.0, 1.0)),
    "whole numbers to 255": lambda b: np.rint(ndimage.gaussian_filter(b * 255.0, 1.0)),
    "resampled linearly": lambda b: ndimage.shift(b * 1.0, 0.25, order=1),
}


@pytest.mark.parametrize("kind", SOFT)
def test_a_soft_mask_ends_half_way_up(kind: str) -> None:
    """A ball's surface stays where it was; taken at > 0 it would have 1.3 times the volume and more."""
    mask = decided(SOFT[kind](ball()).astype(np.float32), "m.nii")
    assert mask.dtype == np.bool_
    assert abs(mask.sum() / ball().sum() - 1) < 0.03


def test_a_mask_of_two_levels_is_taken_as_it_is() -> None:
    np.testing.assert_array_equal(decided(ball().astype(np.float32), "m.nii"), ball())


NONE = {
    "goes down to -1": lambda b: ndimage.distance_transform_edt(~b) - ndimage.distance_transform_edt(b),
    "goes down to -0": lambda b: ndimage.zoom(b * 1.0, 0.7, order=3),
    "holds 4 values from 0 to 3": lambda b: (
        b + 1.0 * (ndimage.distance_transform_edt(b) > 2) + 1.0 * (ndimage.distance_transform_edt(b) > 4)
    ),
    "labels, or a scan": lambda b: b * np.random.default_rng(0).normal(100, 10, b.shape).clip(1),
    "values from 0 to 19": lambda b: ndimage.distance_transform_edt(b),
    "everywhere: no mask": lambda b: np.ones(b.shape),
}


@pytest.mark.parametrize("found", NONE)
def test_what_is_no_mask_is_refused_with_what_it_holds(found: str) -> None:
    with pytest.raises(UsageError, match=found) as error:
        decided(NONE[found](ball()).astype(np.float32), "m.nii")
    assert "m.nii" in error.value.message
    assert "1 in the brain and 0 elsewhere" in error.value.remedy
