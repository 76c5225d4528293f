"""The parts of a head's preparation, each against an independent truth."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.model_space import morphology
from hz_runtime.model_space.recipe import Recipe
from hz_runtime.preparation import gates, mask, registration, template
from hz_runtime.preparation.steps import prepare_head
from small_heads import as_volume, made_head, moved


@pytest.fixture(scope="module")
def mni() -> template.Template:
    return template.mni152()


@pytest.fixture(scope="module")
def made():
    return made_head()


def random_mask(share: float = 0.5) -> np.ndarray:
    return np.random.default_rng(0).random((17, 12, 14)) < share


@pytest.mark.parametrize("steps", [1, 3])
def test_morphology_is_scipys(steps: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    few, many = random_mask(0.05), random_mask(0.95)
    assert np.array_equal(morphology.dilated(few, steps), ndimage.binary_dilation(few, iterations=steps))
    eroded = ndimage.binary_erosion(many, iterations=steps, border_value=1)
    assert np.array_equal(morphology.eroded(many, steps), eroded)


def test_filling_and_reaching_are_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    porous = random_mask(0.7)
    assert np.array_equal(morphology.filled(porous), ndimage.binary_fill_holes(porous))
    labels, _ = ndimage.label(porous)
    seed = np.zeros_like(porous)
    seed[tuple(np.argwhere(labels == 1)[0])] = True
    assert np.array_equal(morphology.reached(seed, porous), labels == 1)


def test_the_template_lies_on_the_recipes_grid(mni: template.Template) -> None:
    recipe = Recipe()
    assert mni.data.shape == mni.mask.shape == recipe.template_shape
    assert np.array_equal(mni.affine, recipe.template_affine)
    assert 1800 < mni.mask.sum() * 0.008 < 1950  # the ICBM 2009 mask has 1886 cm3
    assert np.linalg.norm(mni.centre_mm - recipe.centre_mm) < 3
    assert not mni.data[~mni.mask].any()


def test_the_template_ships_with_its_terms(mni: template.Template) -> None:
    """The notice must appear in all copies, and this is the file that it stands beside."""
    terms = template.FILE.with_name("LICENSES.txt").read_text()
    assert template.FILE.name in terms and mni.sha256 in terms
    assert "Copyright (C) 1993-2004 Louis Collins" in terms and "The nilearn developers" in terms


def test_the_rigid_part_of_an_affine(mni: template.Template) -> None:
    truth = moved((20, -10, 5), (8, 0, -3))
    centre = mni.centre_mm
    about = np.eye(4)
    about[:3, 3] = centre
    stretch = about @ np.diag([1.1, 1.2, 0.9, 1]) @ np.linalg.inv(about)
    # A scan that was stretched about its own centre and then moved: polar decomposition gives the move back.
    assert np.allclose(registration.rigid_pose(stretch @ truth, centre)[:3, :3] @ truth[:3, :3].T, np.eye(3))
    pose = registration.rigid_pose(stretch @ truth, centre)
    assert registration.mean_distance(pose, truth, template.points(mni.mask, mni.affine)) < 1e-9
    assert registration.scales(stretch) == pytest.approx((0.9, 1.1, 1.2))
    assert registration.rotation_degrees(moved((0, 30, 0))) == pytest.approx(30)
    assert registration.mean_distance(moved(shift=(3, 4, 0)), np.eye(4), np.zeros((5, 3))) == pytest.approx(5)


def test_stripped_scans_are_known_from_heads(made) -> None:
    head, brain, affine = made
    known = mask.stripped(np.where(brain, head, 0), affine)
    assert known is not None
    assert (known & brain).sum() > 0.99 * brain.sum()
    assert not (known & ~brain).any()
    assert mask.stripped(head, affine) is None
    assert mask.stripped(np.where(head > 100, head, 0), affine) is None  # a defaced or thresholded head


def test_the_propagated_mask_finds_the_brain(made, mni: template.Template) -> None:
    head, brain, affine = made
    # 4 mm off and 4 % too large, as an affine registration of another person's head would leave it.
    pose = moved((2, 0, 1), (2, -3, 2)) @ np.diag([1.04, 1.04, 1.04, 1])
    found = mask.propagated_mask(head, affine, pose, mni)
    dice = 2 * (found & brain).sum() / (found.sum() + brain.sum())
    assert dice > 0.95


CASES = {
    "a CT": (lambda d: np.where(d < 80, -1000.0, 20 + d / 25), "intensities"),
    "labels": (lambda d: np.round(d / 400), "grey levels"),
}


@pytest.mark.parametrize("shift", [-500, -3000, 4000])
def test_a_shifted_head_is_no_ct(made, shift: int) -> None:
    verdicts = gates.of_scan(as_volume(made[0] + shift, made[2]))
    assert [v.gate for v in verdicts if not v.passed] == []


@pytest.mark.parametrize("case", CASES)
def test_other_things_than_scans_are_refused(case: str, made, mni: template.Template) -> None:
    change, gate = CASES[case]
    with pytest.raises(gates.Refused, match=gate):
        prepare_head(as_volume(change(made[0]), made[2]), mni)


@pytest.mark.parametrize(
    ("spacing", "gate"), [((1.0, 1.0, 4.8), "slice thickness"), ((0.5, 0.5, 0.5), "field of view")]
)
def test_grids_that_hold_no_head_are_refused(spacing, gate: str, made, mni: template.Template) -> None:
    with pytest.raises(gates.Refused, match=gate) as refused:
        prepare_head(as_volume(made[0], np.diag([*spacing, 1.0])), mni)
    assert refused.value.exit_code == 3
    assert not all(verdict.to_dict()["passed"] for verdict in refused.value.verdicts)


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.6, 1.42, 0.6), (0.8, 1.5, 1.5), (0.6, 1.6, 0.6), (0.9, 1.3, 1.3), (0.75, 1.2, 0.75)],
)
def test_the_size_shown_is_the_one_nearest_to_its_limit(
    low: float, high: float, shown: float, mni: template.Template
) -> None:
    scan = as_volume(np.zeros((8, 8, 8)), np.eye(4))
    verdicts = gates.of_registration(scan, np.diag([low, 1.0, high, 1.0]), 0.6, mni.data, mni)
    (size,) = (verdict for verdict in verdicts if verdict.gate == "size")
    assert size.value == pytest.approx(shown)
    assert size.passed == (low >= gates.STRETCH[0] and high <= gates.STRETCH[1])


def test_contrast_tells_t1_from_its_opposite(mni: template.Template) -> None:
    assert gates.contrast(mni.data, mni) > 1.2
    assert gates.contrast(np.where(mni.mask, 1.2 - mni.data, 0), mni) < 1


def test_a_verdict_tells_large_numbers_in_digits() -> None:
    text = str(gates.Verdict("brain volume", 2491.3, 500.0, 2300.0, "cm3", "no adult brain"))
    assert text == "brain volume: 2490 cm3 (at most 2300 wanted): no adult brain"
