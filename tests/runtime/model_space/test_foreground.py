"""What counts as brain: sizes and shares in closed form, and one home for its limits."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import hz_runtime
from hz_runtime.model_space import foreground
from hz_runtime.model_space.foreground import (
    FOREGROUND_SHARE,
    foreground_threshold,
    percentile,
    share_within,
    volume_cm3,
)
from hz_runtime.preparation import gates

PACKAGE = Path(hz_runtime.__file__).parent
LIMITS = ("SMALLEST_BRAIN_CM3", "SMALLEST_ADULT_BRAIN_CM3", "LARGEST_BRAIN_CM3", "LEAST_STRIPPED_AIR")


def test_a_volume_is_voxels_times_their_size_whatever_their_axes() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15, 5:15, 5:15] = True  # 1000 voxels
    turn = np.array([[0.6, -0.8, 0, 7], [0.8, 0.6, 0, -3], [0, 0, 1, 2], [0, 0, 0, 1]])
    assert volume_cm3(mask, np.eye(4)) == pytest.approx(1.0)
    assert volume_cm3(mask, turn @ np.diag([-2.0, 1.0, 1.5, 1.0])) == pytest.approx(3.0)  # mirrored, too


def test_the_share_within_a_grid_counts_to_the_edges_of_its_voxels() -> None:
    mask = np.ones((10, 4, 4), bool)
    grid = np.eye(4)
    grid[0, 3] = 5.0  # its first voxel reaches from 4.5 on: planes 5 to 9 of ten
    assert share_within(mask, np.eye(4), (50, 50, 50), grid) == pytest.approx(0.5)
    assert share_within(mask, np.eye(4), (2, 50, 50), grid) == pytest.approx(0.2)
    coarse = np.diag([4.0, 1.0, 1.0, 1.0])  # one voxel, from -2 to 2: planes 0 and 1, edges not
    assert share_within(mask, np.eye(4), (1, 4, 4), coarse) == pytest.approx(0.2)


def test_the_limits_of_a_brain_have_one_home() -> None:
    """No other file sets a limit of that name, or compares with one of these volumes."""
    numbers = {foreground.SMALLEST_ADULT_BRAIN_CM3, foreground.LARGEST_BRAIN_CM3}
    assert gates.BRAIN_CM3 == (foreground.SMALLEST_ADULT_BRAIN_CM3, foreground.LARGEST_BRAIN_CM3)
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "foreground.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        held = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, float)}
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assert not held & numbers, path
        assert not names & set(LIMITS), path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_percentiles_are_numpys_to_the_bit(dtype):
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 100, 2911):
        values = rng.normal(size=n).astype(dtype)
        for percent in (0, 1, 50, 95.5, 98, 100):
            assert percentile(values, percent) == float(np.percentile(values, percent))


@pytest.mark.parametrize("kind", ["floats", "whole numbers", "mostly air", "few are bright"])
def test_the_bright_end_of_millions_is_that_of_all(kind):
    """It is looked for among the brightest only."""
    data = np.random.default_rng(2).gamma(2, 100, (200, 160, 130)).astype(np.float32)
    if kind == "whole numbers":
        data = np.rint(data)
    elif kind == "mostly air":
        data[:, :, :100] = -5
    elif kind == "few are bright":
        data[...] = 0
        data[100, 100] = np.arange(130)
    low = float(data.min())
    bright = float(np.percentile(data[data > low], 98))
    assert foreground_threshold(np.asfortranarray(data)) == low + FOREGROUND_SHARE * (bright - low)
