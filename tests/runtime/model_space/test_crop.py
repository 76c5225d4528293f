"""Windows of a template: where they lie, against what the makers of published networks wrote of theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hz_runtime.errors import BundleError
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.crop import cut, first_voxel, share_kept
from hz_runtime.model_space.guided_filter import native_harmonized
from hz_runtime.model_space.recipe import ModelInput, Recipe, to_model_space

F32 = NDArray[np.float32]
# FSL's field of 182 x 218 x 182 mm on voxels of 4 mm, in the order that FSL stores it.
FIELD = Recipe(
    orientation="LAS",
    template_shape=(46, 55, 46),
    template_origin_mm=(-90.0, -126.0, -72.0),
    template_spacing_mm=4.0,
    grid_shape=(40, 48, 40),
    crop_first=(3, 3, 3),
    intensity="brain-median",
    intensity_top=4.0,
)


def brain_in_las(shift: tuple[int, int, int] = (0, 0, 0)) -> F32:
    """An ellipsoid of many grey levels with one bright landmark, on FIELD's field, right to left."""
    at = np.indices(FIELD.template_shape).astype(np.float64)
    centre = np.array([22.5, 26.0, 20.5]) + shift
    away = sum(((at[k] - centre[k]) / r) ** 2 for k, r in enumerate((16.0, 20.0, 15.0)))
    data = np.where(away < 1, 400 + 3 * at[0] + 2 * at[1] + at[2], 0)
    data[tuple((centre + np.array([8, -5, 3])).astype(int))] = 1500
    return data.astype(np.float32)


def scan_of(las: F32) -> Volume:
    affine = np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (90.0, -126.0, -72.0)
    geometry = Geometry.from_affine(las.shape, affine)
    return Volume(np.asfortranarray(geometry.to_ras(las)), geometry.ras_affine, geometry, "", "float32")


def indices_crop(data: F32, size: tuple[int, ...], usual: tuple[int, ...]) -> list[int]:
    """IGUANe's own rule (pipeline.py, indices_crop), for any sizes: the first voxel of the crop by axis."""
    first = []
    for axis in range(3):
        filled = np.flatnonzero(data.any(axis=tuple(k for k in range(3) if k != axis)))
        before, after = filled[0], data.shape[axis] - 1 - filled[-1]
        assert before + after >= data.shape[axis] - size[axis]
        if before < usual[axis]:
            first.append(before)
        elif after < data.shape[axis] - size[axis] - usual[axis]:
            first.append(data.shape[axis] - size[axis] - after)
        else:
            first.append(usual[axis])
    return [int(n) for n in first]


@pytest.mark.parametrize("shift", [(0, 0, 0), (-5, 2, 3), (4, -4, -1)])
def test_a_brain_arrives_as_iguane_crops_and_divides_it(shift: tuple[int, int, int]) -> None:
    data = brain_in_las(shift)
    first = indices_crop(data, FIELD.grid_shape, FIELD.crop_first)
    window = tuple(slice(f, f + n) for f, n in zip(first, FIELD.grid_shape, strict=True))
    expected = data[window] / np.median(data[data > 0])  # median_norm.py: the mask is the brain's
    prepared = to_model_space(scan_of(data), replace(FIELD, crop_follows="edges", placement="none"))
    np.testing.assert_allclose(prepared.grid * 4, expected, atol=2e-6)
    # and where the landmark is in the network's grid, the header leads to where it is in the head
    spot = np.argwhere(prepared.grid == prepared.grid.max())[0]
    world = prepared.grid_affine @ [*spot, 1]
    landmark = np.argwhere(data == 1500)[0]
    np.testing.assert_allclose(
        world[:3], [90 - 4 * landmark[0], -126 + 4 * landmark[1], -72 + 4 * landmark[2]]
    )
    assert prepared.high == pytest.approx(4 * np.median(data[data > 0]))


def test_a_mean_and_a_percentile_are_of_the_whole_field() -> None:
    data = brain_in_las()
    scan = scan_of(data)
    mean = to_model_space(scan, replace(FIELD, intensity="field-mean", intensity_top=32.0))
    np.testing.assert_allclose(mean.grid * 32, (data / data.mean())[3:43, 3:51, 3:43], atol=1e-5)
    bright = replace(FIELD, intensity="field-percentile", intensity_percent=97.0, intensity_top=255 / 185)
    found = to_model_space(scan, bright).grid * 255
    wanted = np.clip(data * (185.0 / np.percentile(data, 97)), 0, 255)[3:43, 3:51, 3:43]
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("scale", [0.01, 10_000.0])
@pytest.mark.parametrize("rule", ["brain-median", "field-mean", "field-percentile"])
def test_the_scale_of_a_scan_is_of_no_consequence(rule: str, scale: float) -> None:
    recipe = replace(FIELD, intensity=rule, intensity_percent=97.0, crop_follows="middle")
    data = brain_in_las((1, -2, 1))
    one, other = (to_model_space(scan_of(data * np.float32(k)), recipe).grid for k in (1, scale))
    np.testing.assert_allclose(one, other, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20), st.integers(1, 20), st.integers(4, 30))
def test_the_middle_is_monais(before: int, length: int, size: int) -> None:
    """CropForeground cuts the box; SpatialPad puts (size - n) // 2 zeros before what is too small;
    CenterSpatialCrop starts at n // 2 - size // 2 of what is too large."""
    brain = np.zeros((before + length + 3, 2, 2), bool)
    brain[before : before + length] = True
    start = first_voxel(brain, (0, 0, 0), (size, 2, 2), "middle")[0]
    boxed = np.arange(1, length + 1)
    padded = np.pad(boxed, ((size - length) // 2, size)) if length < size else boxed
    begin = 0 if length <= size else length // 2 - size // 2
    volume = np.zeros(brain.shape, np.float32)
    volume[before : before + length] = boxed[:, None, None]
    np.testing.assert_array_equal(
        cut(volume, (start, 0, 0), (size, 2, 2))[:, 0, 0], padded[begin : begin + size]
    )


def test_what_the_window_leaves_out_is_said() -> None:
    data = brain_in_las((-6, 0, 0))
    recipe = replace(FIELD, placement="none")
    prepared = to_model_space(scan_of(data), replace(recipe, crop_first=(20, 3, 3)))
    kept = (data > 0)[20:, 3:51, 3:43].sum() / (data > 0).sum()
    assert prepared.features["coverage"] == pytest.approx(kept)
    assert any("outside the template's field of view" in flag for flag in prepared.flags)
    assert share_kept(data > 0, (0, 0, 0), (46, 55, 46)) == 1


def test_the_way_back_leads_through_a_mirrored_window() -> None:
    scan = scan_of(brain_in_las((2, 1, 0)))
    prepared = to_model_space(scan, replace(FIELD, crop_follows="edges"))
    native = native_harmonized(scan, prepared, 0.5 * prepared.grid, FIELD)
    inside = scan.data > 0
    wanted = 0.5 * (scan.data - prepared.low) / (prepared.high - prepared.low)
    assert np.abs(native - wanted)[inside].mean() < 0.004
    assert isinstance(prepared, ModelInput)


def test_old_recipes_keep_their_bytes_and_impossible_ones_are_refused() -> None:
    assert "crop_first" not in Recipe().to_dict() and "dof" not in Recipe().to_dict()
    assert len(Recipe().to_dict()) == 10
    assert Recipe.from_dict(FIELD.to_dict()) == FIELD
    for wrong in ({"orientation": "SAR"}, {"crop_follows": "nose"}, {"dof": 9}, {"intensity": "mode"}):
        with pytest.raises(BundleError, match="this hz knows"):
            Recipe.from_dict(FIELD.to_dict() | wrong)
    for wrong in ({"crop_first": [1, 2]}, {"intensity_top": -1.0}, {"filter_radius": 1.5}):
        with pytest.raises(BundleError, match="makes no grid"):
            Recipe.from_dict(FIELD.to_dict() | wrong)
