"""Raw heads onto windows of a fine template: from the scan's own voxels, by the pose and dof asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from hz_runtime.batch.opened import open_bundle
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import write_bundle
from hz_runtime.model_space.recipe import Recipe
from hz_runtime.preparation.preparer import Preparation, Preparer
from hz_runtime.preparation.steps import PreparedHead

pytest.importorskip("niimath")
F32 = NDArray[np.float32]
WINDOW = Recipe(
    orientation="LAS",
    template_shape=(91, 109, 91),
    template_origin_mm=(-91.0, -126.0, -72.0),
    grid_shape=(80, 96, 80),
    crop_first=(5, 6, 5),
    crop_follows="edges",
    intensity="brain-median",
    intensity_top=4.0,
)


def bright(world: NDArray[np.float64]) -> F32:
    """The head at (3, n) mm of the template: a smooth brain, brighter to the front and to the left."""
    x, y, z = world - np.array([0.0, -18.0, 12.0])[:, None]
    inside = (x / 62) ** 2 + (y / 80) ** 2 + (z / 58) ** 2 < 1
    return np.asarray(np.where(inside, 500 + 2 * y - 1.5 * x + z, 0), np.float32)


def turned_head(spacing: float, degrees: float) -> PreparedHead:
    """A stripped scan that is turned about the vertical, as if the registration had found its exact pose."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    pose = np.array([[c, -s, 0, 3.0], [s, c, 0, -5.0], [0, 0, 1, 8.0], [0, 0, 0, 1]])
    shape = tuple(round(n / spacing) for n in (170, 210, 170))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -np.array([85.0, 120.0, 80.0])
    at = np.indices(shape).reshape(3, -1)
    world = (pose @ affine @ np.vstack([at, np.ones(at.shape[1])]))[:3]
    brain = np.asfortranarray(bright(world).reshape(shape))
    empty = np.zeros((91, 109, 91), np.float32)  # what came by way of the template's 2 mm is not looked at
    return PreparedHead(brain, brain > 0, "none", pose, 6, empty, empty > 0, 1.0, (), {}, affine)


@pytest.mark.parametrize(("spacing", "degrees"), [(1.3, 0.0), (2.0, 20.0)])
def test_a_turned_head_arrives_upright(spacing: float, degrees: float) -> None:
    preparer = Preparer(Preparation(brain_mask="none"))
    made = preparer.onto_grid(turned_head(spacing, degrees), WINDOW, None)
    at = np.indices(WINDOW.grid_shape).reshape(3, -1)
    world = (made.grid_affine @ np.vstack([at, np.ones(at.shape[1])]))[:3]
    wanted = bright(world).reshape(WINDOW.grid_shape)
    inner = wanted > 0
    for axis in range(3):  # the edge of the brain is where interpolation mixes it with air
        inner = inner & np.roll(inner, 2, axis) & np.roll(inner, -2, axis)
    found = made.grid[inner]
    scale = float(found @ wanted[inner] / (found @ found))
    assert scale == pytest.approx(4 * np.median(wanted[wanted > 0]), rel=0.02)
    assert np.abs(found * scale - wanted[inner]).max() < 1  # a shift of half a millimetre
    assert made.grid_affine[0, 0] == -2.0  # right to left, as FSL stores it


@pytest.mark.parametrize(("recipe_dof", "used"), [(12, 12), (6, 6), (0, 6)])
def test_the_recipe_says_how_many_degrees_of_freedom(tmp_path: Path, recipe_dof: int, used: int) -> None:
    manifest = tiny.tiny_manifest()
    manifest["recipe"] = Recipe(dof=recipe_dof).to_dict()
    bundle = write_bundle(tmp_path / "a.hz", manifest, tiny.tiny_files())
    asked = RunOptions(preparation=Preparation(brain_mask="none"), require="onnxruntime-cpu")
    opened = open_bundle(bundle, asked)
    try:
        assert opened.preparer is not None and opened.preparer.identity["dof"] == used
        assert opened.options.preparation is not None and opened.options.preparation.shown()["dof"] == used
    finally:
        opened.close()
