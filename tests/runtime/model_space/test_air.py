"""Air: copies of a brain in the forms that tools leave come out as that brain; sound scans stay untouched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import NoBrain
from hz_runtime.inference.open import open_networks
from hz_runtime.io.volume import Volume, read_volume
from hz_runtime.model_space.air import air_of_volume, with_air_lowest, with_air_zero
from hz_runtime.model_space.guided_filter import native_harmonized
from hz_runtime.model_space.recipe import Recipe, to_model_space

ndimage = pytest.importorskip("scipy.ndimage")


def inside_scored(data: np.ndarray) -> np.ndarray:
    inside = data != 0
    return np.where(inside, (data - data[inside].mean()) / data[inside].std(), 0)


COPIES = {
    "as it is": lambda d: d,
    "NaN air": lambda d: np.where(d == 0, np.nan, d),
    "infinite air": lambda d: np.where(d == 0, -np.inf, d),
    "scaled down": lambda d: d * 0.01,
    "scaled up": lambda d: d * 1e4,
    "z-scored": lambda d: (d - d.mean()) / d.std(),
    "z-scored inside": inside_scored,
    "z-scored inside NaN": lambda d: np.where(d == 0, np.nan, inside_scored(d)),
    "shifted": lambda d: d + 0.5 * d.max(),
    "shifted inside NaN": lambda d: np.where(d == 0, np.nan, d + 0.5 * d.max()),
}


def copied(volume: Volume, data: np.ndarray) -> Volume:
    """The volume as a file with these values would be read."""
    missing = ~np.isfinite(data)
    data = np.asfortranarray(np.where(missing, 0, data), np.float32)
    return replace(volume, data=data, missing=missing if missing.any() else None)


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_comes_out_as_the_brain(kind: str, brain) -> None:
    volume = brain(scale=100.0)
    copy = copied(volume, COPIES[kind](volume.data))
    lowest = with_air_lowest(copy)
    outside = volume.data == 0
    assert lowest.missing is None
    assert (lowest.data[outside] == lowest.data.min()).all()
    # Where the lift of a brain must guess where its darkest voxel lay, that is off by its own height.
    loose = "inside" in kind or "air" in kind  # this brain has no dark fluid beside its air
    zeroed = with_air_zero(copy).data
    assert zeroed.min() == 0
    if not loose:
        np.testing.assert_allclose(zeroed / zeroed.max(), volume.data / volume.data.max(), atol=2e-6)
    order = np.argsort(volume.data[~outside], kind="stable")
    assert (np.diff(zeroed[~outside][order]) >= -1e-5 * zeroed.max()).all()


def test_sound_scans_are_the_same_object(brain) -> None:
    volume = brain(scale=100.0)
    noisy = np.abs(volume.data + np.random.default_rng(0).normal(0, 2, volume.shape))  # nothing fills its air
    for sound in (volume, copied(volume, volume.data + 7), copied(volume, noisy)):
        assert with_air_lowest(sound) is sound


def test_ringing_is_clipped_to_air(brain) -> None:
    """A brain through splines is its twin that was clipped at 0, on the grid and on its own voxels."""
    volume = brain(scale=100.0)
    rung = ndimage.shift(volume.data, (0.5, 0.4, 0.3), order=3)
    assert rung.min() < -5
    one, twin = copied(volume, rung), copied(volume, np.maximum(rung, 0))
    assert air_of_volume(one).lies == "ringing"
    a, b = to_model_space(one, Recipe()), to_model_space(twin, Recipe())
    np.testing.assert_allclose(a.grid, b.grid, atol=0.01)
    assert a.low == 0
    natives = [native_harmonized(v, m, m.grid) for v, m in ((one, a), (twin, b))]
    deep = twin.data > 10
    np.testing.assert_allclose(natives[0][deep], natives[1][deep], atol=0.02)
    far = ndimage.distance_transform_edt(volume.data == 0) > 4
    assert not natives[0][far].any()


@pytest.mark.parametrize("air", [0.0, np.nan])
@pytest.mark.parametrize(("radius", "refused"), [(20.0, True), (9.0, False)])
def test_a_hole_in_the_brain_is_counted(air: float, radius: float, refused: bool, brain) -> None:
    """33.5 cm3 of 1246 are refused; 3.05 cm3 are said; air around the brain is no hole."""
    volume = brain(scale=100.0)
    world = np.tensordot(volume.affine[:3, :3], np.indices(volume.shape), 1)
    world += volume.affine[:3, 3][:, None, None, None] - np.array(Recipe().centre_mm)[:, None, None, None]
    hole = np.linalg.norm(world, axis=0) < radius
    data = np.where(volume.data == 0, air, volume.data)
    data[hole] = np.inf
    copy = copied(volume, data)
    if refused:
        with pytest.raises(NoBrain, match=r"33\.\d cm3 of the brain, 2\.7%, hold no number"):
            to_model_space(copy, Recipe())
        return
    (flag,) = to_model_space(copy, Recipe()).flags
    assert flag.startswith(f"{hole.sum()} voxels of the brain")


def test_ages_of_copies_of_a_real_brain(scans: Path) -> None:
    """Within 0.1 year where nothing but the form differs, 0.5 where the zero had to be found again."""
    volume = read_volume(scans / "real_cohort_2mm" / "ds002748_sub-01_T1w.nii.gz")
    bundle = load_bundle()
    recipe = Recipe.from_dict(dict(bundle.recipe))
    rung = ndimage.shift(volume.data, (0.5, 0.4, 0.3), order=3)
    made = {kind: copied(volume, change(volume.data)) for kind, change in COPIES.items()}
    made |= {"splines": copied(volume, rung), "twin": copied(volume, np.maximum(rung, 0))}
    with open_networks(bundle) as networks:
        assert networks.age_predictor is not None
        grids = np.stack([to_model_space(one, recipe).grid for one in made.values()])
        ages = dict(zip(made, networks.age_predictor(networks.harmonizer(grids)).raw, strict=True))
    assert abs(ages.pop("splines") - ages.pop("twin")) < 0.1
    for kind, age in ages.items():
        assert abs(age - ages["as it is"]) < (0.1 if "s" not in kind or "scaled" in kind else 0.5), kind
