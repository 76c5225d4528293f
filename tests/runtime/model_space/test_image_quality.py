"""The measures of image quality, against faults of known size put into made-up and real brains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import hz_runtime.model_space.image_quality as module
from brains_of_known_quality import SHAPE, made_up, noisy, volume_of
from hz_runtime.io.volume import Volume, read_volume
from hz_runtime.model_space.air import with_air_zero
from hz_runtime.model_space.image_quality import (
    LOOK,
    NOT_MEASURED,
    OK,
    TO_FWHM,
    UNITS,
    WhiteMatter,
    fwhm_of_ratio,
    image_quality,
    quality_flags,
    second_difference,
)
from hz_train.simulate_faults import FAULTS, Subject

pytestmark = pytest.mark.requirement("image-quality")

F32 = NDArray[np.float32]


def values(data: F32, *, corrected: bool = True) -> dict[str, float]:
    found = image_quality(volume_of(data), corrected=corrected)
    return {one.measure: np.nan if one.value is None else one.value for one in found}


@pytest.mark.parametrize("sigma", [1.0, 3.0, 5.0])
def test_noise_of_known_size_is_found_within_five_percent(sigma: float) -> None:
    assert values(noisy(sigma))["noise"] == pytest.approx(sigma / 100, rel=0.05)


def test_a_field_of_known_size_is_found() -> None:
    """A tilt of the logarithm by 0.8 over 160 mm: 0.005 a mm, between the cells' 5th and 95th percentile."""
    y = (np.arange(SHAPE[1]) - (SHAPE[1] - 1) / 2) * 2
    tilted = made_up() * np.exp(0.005 * y)[None, :, None].astype(np.float32)
    field = WhiteMatter.of(volume_of(tilted)).field  # type: ignore[union-attr]
    ends = field.at(np.array([[72.0, 26.0, 68.0], [72.0, 150.0, 68.0]]))
    assert np.log(ends[1] / ends[0]) == pytest.approx(0.005 * 124, rel=0.1)
    assert values(made_up())["field"] < 0.05 < 0.45 < values(tilted)["field"] < 0.7


@pytest.mark.parametrize("fwhm", [4.0, 7.0, 11.0])
def test_smoothed_noise_has_the_width_that_it_was_smoothed_by(fwhm: float) -> None:
    noise = np.random.default_rng(1).normal(size=(80, 80, 80))
    smooth = gaussian_filter(noise, fwhm / TO_FWHM / 2, mode="wrap").astype(np.float32)
    far, near = (np.mean([np.mean(second_difference(smooth, a, n) ** 2) for a in range(3)]) for n in (3, 1))
    assert fwhm_of_ratio(float(far / near), np.full(3, 2.0)) == pytest.approx(fwhm, rel=0.05)


def test_no_ratio_has_no_width() -> None:
    assert np.isnan(fwhm_of_ratio(0.0, np.full(3, 2.0)))


@pytest.mark.parametrize("name", list(FAULTS))
def test_each_measure_grows_with_its_fault(name: str) -> None:
    spoil, strengths = FAULTS[name]
    subject = Subject(made_up(), np.full(3, 2.0))
    found = [values(made_up())[name]]
    for strength in strengths[1:4]:
        found.append(values(spoil(subject, strength, np.random.default_rng(3)))[name])
    assert found == sorted(found)
    assert found[-1] > 2 * found[0]


def test_scale_and_orientation_change_nothing() -> None:
    data = noisy(3)
    once = values(data)
    assert values(data * np.float32(37.5)) == pytest.approx(once, rel=1e-3)
    # Cells of the field need not fall on the same voxels from the other end.
    assert values(data[:, ::-1].transpose(2, 1, 0)) == pytest.approx(once, rel=0.1, abs=0.005)


def test_a_field_that_nothing_took_out_has_a_value_and_no_verdict() -> None:
    field = image_quality(volume_of(made_up()), corrected=False)[-1]
    assert (field.measure, field.limit, field.verdict) == ("field", None, NOT_MEASURED)
    assert field.value is not None and "took the field out" in field.to_dict()["reason"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: volume_of(data, 3.0), "voxels of 3 mm"),
        (lambda data: volume_of(data, 0.5), "too little brain"),
        (lambda data: volume_of(np.zeros_like(data)), "no brain"),
    ],
)
def test_what_cannot_be_measured_has_no_value_and_a_reason(
    change: Callable[[F32], Volume], reason: str
) -> None:
    for one in image_quality(change(made_up()), corrected=True):
        assert (one.value, one.verdict, one.flag) == (None, NOT_MEASURED, "")
        assert reason in one.reason


@pytest.mark.parametrize(("slices", "mm"), [(1, 2.0), (7, 2.0), (6, 2.5), (8, 2.0)])
def test_of_a_thin_slab_is_measured_what_can_be(slices: int, mm: float) -> None:
    """Four times the middle slices, so that even 14 mm are 100 cm3; a cell of the field is 16 mm or 15."""
    middle = noisy(3)[:, :, (SHAPE[2] - slices) // 2 :][..., :slices]
    found = image_quality(volume_of(np.tile(middle, (2, 2, 1)), mm), corrected=True)
    reasons = {one.measure: one.reason for one in found if one.value is None}
    if slices * mm < 15:
        assert reasons == dict.fromkeys(UNITS, "too little brain to fit a field to")
    elif slices == 6:
        assert reasons["blur"] == "the brain is too thin"
    else:
        assert reasons == {"ghosts": "too little white matter in one piece"}


def test_without_white_matter_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_WHITE_CM3", 1500.0)
    found = image_quality(volume_of(made_up()), corrected=True)
    assert {(one.value, one.reason) for one in found} == {(None, "less than 1500 cm3 of inner white matter")}


def test_beyond_its_limit_a_measure_asks_for_a_look_and_says_so() -> None:
    found = {one.measure: one for one in image_quality(volume_of(noisy(9)), corrected=True)}
    assert found["noise"].verdict == LOOK and found["blur"].verdict == OK
    (flag,) = quality_flags([found["noise"], found["blur"]])
    assert flag.startswith("image quality: noisy (noise 0.0") and flag.endswith("look at it")


def test_no_real_head_of_many_sites_is_flagged_and_a_spoilt_one_is(scans: Path) -> None:
    names = (
        "skullstripped/oasis_1125_brain.nii.gz",  # of 83 years
        "skullstripped/ds002748_sub-54_T1w_brain.nii.gz",
        "real_cohort_2mm/ds000011_sub-04_T1w.nii.gz",
    )
    for name in names:
        volume = with_air_zero(read_volume(scans / name))
        assert quality_flags(image_quality(volume, corrected=False)) == (), name
    subject = Subject(volume.data, volume.spacing)
    for measure in ("noise", "blur", "ghosts"):
        spoil, strengths = FAULTS[measure]
        data = spoil(subject, strengths[-1], np.random.default_rng(0))
        flags = quality_flags(image_quality(replace(volume, data=data), corrected=False))
        assert any(f"({measure} " in flag for flag in flags)
