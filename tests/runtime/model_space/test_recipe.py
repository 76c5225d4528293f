"""Preparation: where a brain lands, what is flagged, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hz_runtime.errors import BundleError, NoBrain
from hz_runtime.model_space.recipe import Recipe, describe, outside, to_model_space
from hz_runtime.model_space.resample import bounding_box


def test_grid_covers_the_template_box():
    recipe = Recipe()
    corner = recipe.grid_affine @ [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(corner[:3], [-91, -127, -73])
    spacing = np.diag(recipe.grid_affine)[:3]
    np.testing.assert_allclose(spacing, [182 / 64, 218 / 64, 182 / 64])


def test_round_trip_through_json():
    import json

    recipe = Recipe(centre_mm=(1.0, 2.0, 3.0))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.from_dict({}) == Recipe()


def test_keys_of_a_newer_recipe_are_refused_by_name():
    newer = {**Recipe().to_dict(), "denoise": True, "bias_field": "n4"}
    with pytest.raises(BundleError, match="'bias_field', 'denoise', which this hz does not know") as caught:
        Recipe.from_dict(newer)
    assert caught.value.exit_code == 4
    assert "--upgrade hz-mri" in caught.value.remedy


def test_unknown_rule_is_refused_by_name():
    with pytest.raises(BundleError, match="intensity 'whitestripe'"):
        Recipe.from_dict({"intensity": "whitestripe"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"grid_shape": [64, 64]},
        {"grid_shape": [0, 64, 64]},
        {"grid_shape": [64.0, 64, 64]},
        {"template_shape": [100_000, 91, 91]},
        {"template_shape": None},
        {"template_spacing_mm": 0},
        {"template_spacing_mm": "2"},
        {"template_origin_mm": [float("nan"), 0, 0]},
        {"centre_mm": "abc"},
        {"centre_tolerance_mm": None},
        {"template": "../../MNI152"},
    ],
)
def test_numbers_that_make_no_grid_are_refused_before_any_scan(wrong):
    with pytest.raises(BundleError, match=next(iter(wrong))) as caught:
        Recipe.from_dict(wrong)
    assert caught.value.exit_code == 4


def test_values_span_zero_to_one(brain):
    prepared = to_model_space(brain(), Recipe())
    assert prepared.grid.shape == (64, 64, 64)
    assert prepared.grid.dtype == np.float32
    assert (prepared.grid.min(), prepared.grid.max()) == (0, 1)


def test_in_place_means_resampled_only(brain):
    prepared = to_model_space(brain(), Recipe())
    assert prepared.shift_mm == (0, 0, 0)
    assert prepared.flags == ()
    np.testing.assert_array_equal(prepared.grid_affine, Recipe().grid_affine)


def test_elsewhere_is_shifted(brain):
    """A brain 60 mm off lands where the same brain in place does, which alone is no reason to look at it."""
    here, there = to_model_space(brain(), Recipe()), to_model_space(brain(move=(-40.0, 30.0, 33.0)), Recipe())
    assert there.flags == here.flags == ()
    assert np.linalg.norm(np.add(there.shift_mm, (-40, 30, 33))) < Recipe().centre_tolerance_mm
    centre = [np.argwhere(p.grid > 0.2).mean(0) for p in (here, there)]
    assert np.abs(centre[0] - centre[1]).max() < 3
    # the way back to the scan's own world is kept
    np.testing.assert_allclose(there.grid_affine[:3, 3] + there.shift_mm, Recipe().grid_affine[:3, 3])


@pytest.mark.parametrize("degrees", [0.0, 15.0])
def test_coverage_is_the_share_of_brain_inside_the_template_box(brain, degrees):
    """Counted longhand over every voxel; the edges of the box are 1 mm beyond its outermost centres."""
    angle, tilt = np.deg2rad(degrees), np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = brain(move=(0.0, 45.0, 70.0))
    volume = replace(volume, affine=tilt @ volume.affine)
    world = np.argwhere(volume.data > 0.2) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    wanted = ((world > (-91, -127, -73)) & (world < (91, 91, 109))).all(1).mean()
    prepared = to_model_space(volume, Recipe(placement="none"))
    assert 0.6 < wanted < 0.95
    assert abs(prepared.features["coverage"] - wanted) < 0.02  # it looks at every second voxel, 4 mm apart
    assert "outside the template's field of view" in prepared.flags[0]


def test_without_placement_nothing_moves(brain):
    with pytest.raises(NoBrain, match="field of view"):
        to_model_space(brain(move=(300.0, 0, 0)), Recipe(placement="none"))


@pytest.mark.parametrize("intensity_scale", [1e-3, 1.0, 4000.0])
def test_intensity_units_do_not_matter(brain, intensity_scale):
    reference = to_model_space(brain(), Recipe()).grid
    np.testing.assert_allclose(
        to_model_space(brain(scale=intensity_scale), Recipe()).grid, reference, atol=1e-5
    )


@pytest.mark.parametrize("offset", [-50.0, 100.0, 3000.0])
def test_air_need_not_be_zero(brain, offset):
    """Min-max undoes an offset only if what lies outside the field of view is air too, and not 0."""
    whole = brain(scale=100.0)
    box = bounding_box(whole.data > 0)  # cropped: half of the template lies outside
    corner = np.eye(4)
    corner[:3, 3] = [part.start for part in box]
    data = np.asfortranarray(whole.data[box])
    cropped = replace(whole, data=data, affine=whole.affine @ corner)
    expected, found = (to_model_space(v, Recipe()) for v in (cropped, replace(cropped, data=data + offset)))
    np.testing.assert_allclose(found.grid, expected.grid, atol=1e-4)
    assert found.low == pytest.approx(expected.low + offset)
    assert found.high == pytest.approx(expected.high + offset, rel=1e-5)
    assert found.flags == expected.flags


def test_constant_and_specks_are_refused(brain):
    with pytest.raises(NoBrain, match="every voxel is 7"):
        to_model_space(brain(fill=7.0), Recipe())
    with pytest.raises(NoBrain, match="cm3 of foreground"):
        to_model_space(brain(shrink=5), Recipe())


def test_a_whole_head_is_not_taken_for_a_brain(brain):
    """1.15 times the axes of the fixture's 1246 cm3 ellipsoid is a big brain, 1.3 times (2738 cm3) a head."""
    assert to_model_space(brain(shrink=1 / 1.15), Recipe()).features["brain_cm3"] > 1800
    with pytest.raises(NoBrain, match=r"(?s)27\d\d cm3 of foreground.*hz-run --prepare"):
        to_model_space(brain(shrink=1 / 1.3), Recipe())


def test_a_header_without_orientation_is_flagged(brain):
    volume = brain()
    silent = replace(volume, geometry=replace(volume.geometry, sform_code=0, qform_code=0))
    assert any("left from right" in flag for flag in to_model_space(silent, Recipe()).flags)


def test_a_label_map_is_no_scan(brain):
    volume = brain(noise=0)
    labels = replace(volume, data=np.rint(volume.data * 3).astype(np.float32))
    with pytest.raises(NoBrain, match="only 4 different intensities: a mask or a label map"):
        to_model_space(labels, Recipe())


def test_flags_against_training_statistics(brain):
    recipe = Recipe()
    prepared = to_model_space(brain(), recipe)
    mean = prepared.features["brain_cm3"]
    inside = {"brain_cm3": {"min": mean - 50, "max": mean + 50, "mean": mean, "sd": 30.0}}
    assert to_model_space(brain(), recipe, inside).flags == ()
    small = {"brain_cm3": {"min": mean / 3, "max": mean / 2, "mean": mean / 2.5, "sd": 30.0}}
    (flag,) = to_model_space(brain(), recipe, small).flags
    assert flag.startswith("brain volume (brain_cm3) ") and "networks were trained on" in flag
    assert outside({"unknown": 1.0}, small) == []


def test_size_is_measured_in_cm3(brain):
    """An ellipsoid's volume is known in closed form."""
    volume = brain(noise=0.0)
    measured = describe(to_model_space(volume, Recipe()).grid, Recipe())
    wanted = 4 / 3 * np.pi * 62 * 80 * 60 / 1000
    assert abs(measured["brain_cm3"] / wanted - 1) < 0.08
    assert abs(measured["extent_y_mm"] - 160) < 8
