"""Outlier scores: the statistics against closed forms, and planted bad scans among good ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from hz_runtime.batch.run import run_batch
from hz_runtime.bundle.store import load_bundle, write_bundle
from hz_runtime.errors import BundleError
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume, write_volume
from hz_runtime.model_space.outliers import (
    COARSE,
    LEAST_SCANS,
    MEASURES,
    THRESHOLD,
    coarse,
    cohort_scores,
    measured,
    modified_z,
    reference_of,
    score,
)
from hz_runtime.model_space.recipe import ModelInput, Recipe, to_model_space

SHAPE, SPACING = (46, 54, 46), 4.0
CENTRE = np.array(Recipe().centre_mm)


def head(seed: int, size: float = 1.0, turn: float = 0.0, half: bool = False, noise: float = 0.03) -> Volume:
    """A brain of about 1350 cm3 with cortex, white matter and ventricles, shaped and shaded by its seed.

    turn : degrees around the left-right axis.  half : only the left hemisphere.  noise : of the full range.
    """
    rng = np.random.default_rng(seed)
    axes = np.array([66.0, 82.0, 60.0]) * np.exp(rng.normal(0, 0.02, 3)) * size
    affine = np.diag([SPACING] * 3 + [1.0])
    affine[:3, 3] = CENTRE - SPACING * (np.array(SHAPE) - 1) / 2
    where = SPACING * (np.indices(SHAPE).reshape(3, -1).T - (np.array(SHAPE) - 1) / 2)
    angle = np.deg2rad(turn + rng.normal(0, 1))
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = (where @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])).T.reshape(3, *SHAPE)
    radius = np.sqrt((x / axes[0]) ** 2 + (y / axes[1]) ** 2 + (z / axes[2]) ** 2)
    data = np.where(radius < 0.78, 0.85, 0.55 + rng.normal(0, 0.01))
    wide = 1 + rng.uniform(0, 0.6)
    ventricles = ((np.abs(x) - 12) / (8 * wide)) ** 2 + (y / 30) ** 2 + ((z - 8) / (12 * wide)) ** 2 < 1
    data[ventricles] = 0.2
    data[(y < -40) & (z < -25)] *= 0.9  # a cerebellum, so that front and back differ
    data = np.clip(data + noise * rng.standard_normal(SHAPE), 0, 1)
    data[(radius >= 1) | (half & (x > 0))] = 0
    stored = np.asfortranarray(data * rng.uniform(500, 2000), np.float32)
    return Volume(stored, affine, Geometry.from_affine(SHAPE, affine), "0" * 64, "float32")


@pytest.fixture(scope="module")
def good() -> list[ModelInput]:
    return [to_model_space(head(seed), Recipe()) for seed in range(20)]


def rows(scans: list[ModelInput]) -> list[dict[str, float]]:
    return [measured({**p.features, "shift_mm": float(np.linalg.norm(p.shift_mm))}, p.grid) for p in scans]


def scores(scans: list[ModelInput]):
    return cohort_scores(rows(scans), np.stack([coarse(p.grid) for p in scans]))


def test_modified_z_has_a_closed_form() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])  # median 3, absolute deviations 2 1 0 1 97, MAD 1
    np.testing.assert_allclose(modified_z(values), 0.6745 * (values - 3))
    np.testing.assert_allclose(modified_z(10 * values - 7), modified_z(values))
    np.testing.assert_array_equal(modified_z(np.full(5, 2.0)), 0)
    equal = np.array([2.0, 2.0, 2.0, 2.0, 5.0])  # MAD 0: the floor stands in for the standard deviation
    np.testing.assert_allclose(modified_z(equal, floor=1.5), [0, 0, 0, 0, 2])


def test_modified_z_of_normal_values_is_their_z() -> None:
    values = np.random.default_rng(0).normal(7, 3, 20000)
    np.testing.assert_allclose(modified_z(values), (values - 7) / 3, atol=0.1)


def test_coarse_is_the_mean_of_blocks_of_a_smooth_volume() -> None:
    x, y, z = np.meshgrid(*[np.linspace(0, 1, 64, dtype=np.float32)] * 3, indexing="ij")
    volume = x * y + 0.5 * z
    blocks = volume.reshape(16, 4, 16, 4, 16, 4).mean((1, 3, 5))
    inner = (slice(1, -1),) * 3  # the kernel reaches beyond the box at its edge
    np.testing.assert_allclose(coarse(volume)[inner], blocks[inner], atol=1e-4)
    assert coarse(np.ones((91, 109, 91), np.float32)).shape == COARSE


def test_the_place_of_a_brain_is_a_share_of_the_box() -> None:
    grid = np.zeros((10, 20, 40), np.float32)
    grid[2:4, 5:15, 39] = 1.0
    found = measured({"mean": 0.5, "unknown": 3.0}, grid)
    assert "unknown" not in found
    assert [found[f"centre_{axis}"] for axis in "xyz"] == pytest.approx([0.3, 0.5, 39.5 / 40])


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("rotated", {"turn": 25.0}),
        ("shrunk", {"size": 0.85}),
        ("grown", {"size": 1.15}),
        ("half a brain", {"half": True}),
        ("mostly noise", {"noise": 0.5}),
    ],
)
def test_a_planted_outlier_is_found_among_twenty(good: list[ModelInput], name: str, bad: dict) -> None:
    found = scores([*good[:19], to_model_space(head(99, **bad), Recipe())])
    assert found[-1].score > THRESHOLD and found[-1].reasons, name
    assert found[-1].score == max(r.score for r in found)
    assert sum(bool(r.reasons) for r in found[:-1]) <= 1


def test_a_displaced_brain_is_found(good: list[ModelInput]) -> None:
    volume = head(99)
    affine = volume.affine.copy()
    affine[1, 3] += 60
    moved = Volume(volume.data, affine, Geometry.from_affine(SHAPE, affine), "0" * 64, "float32")
    found = scores([*good[:19], to_model_space(moved, Recipe())])[-1]
    assert found.reasons[0].startswith("distance by which preparation moved the brain (shift_mm) 6")


def test_clean_scans_are_rarely_flagged(good: list[ModelInput]) -> None:
    found = scores(good)
    assert len(found) == 20
    assert sum(bool(r.reasons) for r in found) <= 1  # 5 %; 0.9 % of independent normal measures
    assert all(set(r.z) == set(MEASURES) for r in found)


def test_the_share_of_clean_scans_flagged_is_the_documented_one() -> None:
    """Independent normal measures, 1000 sites of 20 and of 10 scans: 0.9 % and 5 % exceed the threshold."""
    rng = np.random.default_rng(0)
    for n, share in ((20, 0.009), (10, 0.05)):
        worst = [
            np.max([np.abs(modified_z(rng.standard_normal(n))) for _ in range(11)], axis=0)
            for _ in range(1000)
        ]
        assert (np.concatenate(worst) > THRESHOLD).mean() == pytest.approx(share, rel=0.25)


def test_the_correlation_leaves_the_scan_itself_out() -> None:
    """Ten equal volumes and their opposite: with a share of its own in the mean, r would be above -1."""
    rng = np.random.default_rng(1)
    usual = 0.5 + 0.1 * rng.random(COARSE).astype(np.float32)
    volumes = np.stack([usual] * 10 + [1 - usual])
    found = cohort_scores([{"mean": 0.5}] * 11, volumes)
    assert found[-1].values["correlation"] == pytest.approx(-1, abs=1e-6)
    assert found[0].values["correlation"] > 0.99
    assert found[-1].reasons and not found[0].reasons


def test_too_few_scans_are_not_compared(good: list[ModelInput]) -> None:
    few = good[: LEAST_SCANS - 1]
    assert {(r.score, r.reasons) for r in scores(few)} == {(0.0, ())}
    assert reference_of(np.stack([p.grid for p in few]), [p.features for p in few]) == {}


@pytest.fixture(scope="module")
def reference(good: list[ModelInput]) -> dict:
    made = reference_of(np.stack([p.grid for p in good]), [p.features for p in good])
    return json.loads(json.dumps(made))  # as it comes out of a manifest


def test_a_reference_is_small_and_holds_the_medians(reference: dict, good: list[ModelInput]) -> None:
    assert len(json.dumps(reference)) < 15_000
    assert reference["n"] == 20
    cm3 = np.array([p.features["brain_cm3"] for p in good])
    assert reference["measures"]["brain_cm3"]["median"] == pytest.approx(np.median(cm3), abs=1e-5)
    mad = np.median(np.abs(cm3 - np.median(cm3)))
    assert reference["measures"]["brain_cm3"]["mad"] == pytest.approx(mad, abs=1e-5)
    assert "shift_mm" not in reference["measures"]  # not given above


def test_new_scans_are_compared_with_the_reference(reference: dict) -> None:
    usual = [to_model_space(head(seed), Recipe()) for seed in range(50, 58)]
    assert sum(bool(score(p.features, p.grid, reference).reasons) for p in usual) <= 1
    for bad in ({"half": True}, {"turn": 30.0}, {"size": 0.8}, {"noise": 0.5}):
        p = to_model_space(head(60, **bad), Recipe())
        found = score(p.features, p.grid, reference)
        assert found.score > THRESHOLD, bad
        assert "training scans" in found.reasons[0]


def test_a_scan_that_lacks_a_measure_is_compared_by_the_others(reference: dict, good) -> None:
    found = score({}, good[0].grid, reference)
    assert set(found.z) == {"centre_x", "centre_y", "centre_z", "correlation"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("mean"),
        lambda r: r.pop("measures"),
        lambda r: r.update(mean="not base64!"),
        lambda r: r.update(mean=r["mean"][:400]),
        lambda r: r.update(measures=[1, 2]),
        lambda r: r["measures"].update(sd={"median": "x", "mad": 1}),
        lambda r: r["measures"].update(sd={"median": float("nan"), "mad": 1}),
    ],
)
def test_a_damaged_reference_is_refused(reference: dict, good: list[ModelInput], damage) -> None:
    broken = copy.deepcopy(reference)
    damage(broken)
    with pytest.raises(BundleError):
        score(good[0].features, good[0].grid, broken)


def test_hz_run_flags_what_is_unlike_the_training_scans(tmp_path: Path, reference: dict) -> None:
    """Only where the bundle carries a reference: the same scans through a bundle with and without one."""
    scans = []
    for name, volume in (("usual", head(50)), ("half", head(51, half=True))):
        scans.append(tmp_path / f"{name}.nii.gz")
        write_volume(scans[-1], volume.data, volume.geometry)
    manifest = tiny.tiny_manifest()
    manifest["cohort"]["reference"] = reference
    write_bundle(tmp_path / "with.hz", manifest, tiny.tiny_files())
    tiny.make_tiny_bundle(tmp_path / "without.hz")
    found, volumes, scored = {}, {}, {}
    for name in ("with", "without"):
        report = run_batch(scans, load_bundle(tmp_path / f"{name}.hz"), tmp_path / name)
        assert report.exit_code == 0
        found[name] = [any("robust score" in flag for flag in scan.flags) for scan in report.scans]
        volumes[name] = [p.read_bytes() for p in sorted((tmp_path / name).glob("*.nii.gz"))]
        scored[name] = json.loads((tmp_path / name / "run.json").read_text())["outlier_score"]
    assert scored["with"] == {"available": True, "n": 20, "threshold": 5.0}
    assert scored["without"]["available"] is False and "no reference" in scored["without"]["reason"]
    assert found == {"with": [False, True], "without": [False, False]}
    assert volumes["with"] == volumes["without"] and len(volumes["with"]) == 2  # a flag changes no volume
