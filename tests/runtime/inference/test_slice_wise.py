"""Slice-wise networks: there and back, medians, seams, the percentile rule, and whole runs of a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

import tiny
import tiny_slices
from hz_runtime.backends.registry import open_backend
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BundleError, GridMismatch, NoBrain, UsageError
from hz_runtime.inference.open import NetworkOptions, open_networks
from hz_runtime.inference.slice_wise import (
    SLICE_BATCH,
    SliceHarmonizer,
    SlicePredictor,
    axial_slices,
    middle,
    of_volumes,
    reassembled,
    seams,
    slice_wise,
)
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.intensity import ANCHORS, LEVELS, RULES, median, percentile
from hz_runtime.model_space.recipe import Recipe, to_model_space
from hz_runtime.results.record import read_record
from small_scans import results, write_scan, write_scans

ON_CPU = NetworkOptions(backend="onnxruntime-cpu")
RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_slices.make_slice_bundle(tmp_path_factory.mktemp("bundle") / "slices.hz"))


# Slices


def test_slice_k_is_the_volumes_kth_from_the_foot_and_goes_back_there() -> None:
    volume = RNG.random((5, 6, 7), dtype=np.float32)
    slices = axial_slices(volume)
    assert slices.shape == (7, 1, 5, 6)
    for k in range(7):
        np.testing.assert_array_equal(slices[k, 0], volume[:, :, k])
    np.testing.assert_array_equal(reassembled(slices), volume)


@pytest.mark.parametrize(
    ("length", "count", "first"), [(64, 64, 0), (64, 20, 22), (9, 3, 3), (64, 27, 18), (5, 1, 2)]
)
def test_middle(length: int, count: int, first: int) -> None:
    assert middle(length, count) == slice(first, first + count)


@pytest.mark.parametrize("count", [0, 8, -1])
def test_more_middle_slices_than_there_are(count: int) -> None:
    with pytest.raises(GridMismatch, match="7"):
        middle(7, count)


@pytest.mark.parametrize("depth", [1, SLICE_BATCH - 1, SLICE_BATCH, 2 * SLICE_BATCH + 3])
def test_every_slice_travels_once_in_batches_of_one_size(depth: int) -> None:
    seen: list[np.ndarray] = []

    def double(batch: np.ndarray) -> np.ndarray:
        seen.append(batch.copy())
        return 2 * batch

    volume = RNG.random((4, 3, depth), dtype=np.float32) + 1
    np.testing.assert_array_equal(SliceHarmonizer(double)(volume[None])[0], 2 * volume)
    assert {batch.shape for batch in seen} == {(SLICE_BATCH, 1, 4, 3)}
    sent = np.concatenate(seen)
    np.testing.assert_array_equal(sent[:depth], axial_slices(volume))
    assert not sent[depth:].any()


def test_slices_of_one_value_stay_what_they_are() -> None:
    """Of those an instance norm would give rounding noise, blown up and another one on every engine."""
    sent: list[np.ndarray] = []

    def noise(batch: np.ndarray) -> np.ndarray:
        sent.append(batch)
        return RNG.random(batch.shape, dtype=np.float32) + 1

    volume = RNG.random((4, 3, 30), dtype=np.float32)
    volume[:, :, :5] = 0
    volume[:, :, 11] = 0.25
    volume[1, 1, 12] += 0.001  # hardly anything is something
    found = SliceHarmonizer(noise)(volume[None])[0]
    empty = np.isin(np.arange(30), [*range(5), 11])
    np.testing.assert_array_equal(found[:, :, empty], volume[:, :, empty])
    assert (found[:, :, ~empty] >= 1).all()
    np.testing.assert_array_equal(np.concatenate(sent)[:24], axial_slices(volume)[~empty])
    assert not SliceHarmonizer(noise)(np.zeros((2, 4, 3, 5), np.float32)).any()


@pytest.mark.parametrize("count", [1, 4, 5, 40])
def test_a_predictor_gives_the_median_over_the_middle_slices(count: int) -> None:
    volumes = RNG.random((2, 4, 3, 41), dtype=np.float32)
    found = SlicePredictor(lambda batch: batch.mean(axis=(1, 2, 3))[:, None], count)(volumes)
    first = (41 - count) // 2
    wanted = [np.median(v[:, :, first : first + count].mean(axis=(0, 1))) for v in volumes]
    assert found.shape == (2,)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_predictor_of_slices_needs_to_know_how_many() -> None:
    backend = open_backend("onnxruntime", tiny_slices.age_onnx(), threads=1)
    assert slice_wise(backend)
    with pytest.raises(BundleError, match="does not say how many"):
        of_volumes(backend)


# Seams


def textured(depth: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid full of noise, and its inside."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (20, 22, depth)), indexing="ij")
    brain = x**2 + y**2 + z**2 < 0.8
    return (brain * (0.3 + 0.4 * RNG.random(brain.shape))).astype(np.float32), brain


def test_an_affine_network_leaves_no_seams() -> None:
    before, brain = textured()
    found = seams(before, np.float32(0.35) * before + np.float32(0.2), brain)
    assert found.overall == pytest.approx(1, abs=1e-4)
    assert found.worst == pytest.approx(1, abs=1e-4)


def test_seams_in_closed_form() -> None:
    """A ramp of 0.01 a voxel along every axis; every other slice is lifted by 0.03. Within slices neighbours
    still differ by 0.01; between them by 0.01 + 0.03 or 0.03 - 0.01 in turns."""
    x, y, z = np.indices((8, 9, 11))
    before = (0.01 * (x + y + z)).astype(np.float32)
    after = (before + 0.03 * (z % 2)).astype(np.float32)
    found = seams(before, after, np.ones(before.shape, bool))
    assert found.worst == pytest.approx(4, rel=1e-4)
    assert found.overall == pytest.approx(3, rel=1e-4)


def test_only_the_brain_counts_and_hardly_filled_slices_do_not() -> None:
    before, brain = textured()
    after = before + np.where(brain, 0, RNG.random(brain.shape)).astype(np.float32)
    assert seams(before, after, brain).worst == pytest.approx(1, abs=1e-4)
    tip = np.zeros_like(brain)
    tip[10, 10, :] = True  # one voxel a slice, beside slices of hundreds
    after[:, :, 0] += 0.5
    assert seams(before, after, brain | tip).worst == pytest.approx(1, abs=0.05)
    with pytest.raises(GridMismatch):
        seams(before, after, brain[1:])


def test_a_real_head_gets_no_seams_from_the_affine_network(scans: Path, bundle: Bundle) -> None:
    """The tiny slice-wise harmonizer is 0.8 x + 0.1 on every slice: any seam would be the runtime's own."""
    path = next(iter(sorted((scans / "real_cohort_2mm").rglob("*.nii.gz"))))
    grid = to_model_space(read_volume(path), Recipe.from_dict(dict(bundle.recipe))).grid
    made = open_networks(bundle, ON_CPU).harmonizer(grid)
    found = seams(grid, made, grid > 0.02)
    assert found.overall == pytest.approx(1, abs=1e-3)
    assert found.worst == pytest.approx(1, abs=1e-3)
    each = made * (1 + 0.2 * (np.arange(grid.shape[2]) % 2))  # every other slice its own way
    assert seams(grid, each, grid > 0.02).overall > 1.3


# Recipe


def by_hand(values: np.ndarray, percent: float) -> float:
    """Percentile by sorting, linear between the two nearest."""
    ordered = np.sort(values.astype(np.float64))
    place = percent / 100 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def test_percentile_rule_scales_the_foreground_and_clips() -> None:
    brain = RNG.normal(600, 80, 5000)
    hot = np.full(3, 9000.0)
    data = np.concatenate([np.zeros(6000), brain, hot]).reshape(-1, 1, 1).astype(np.float32)
    scaled, low, high = percentile(data)
    inside = data[data > 0].ravel()  # nothing of the brain is as dark as a tenth of its bright end
    assert low == pytest.approx(by_hand(inside, 0.5), rel=1e-6)
    assert high == pytest.approx(by_hand(inside, 99.5), rel=1e-6)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, np.clip((data - low) / (high - low), 0, 1), atol=1e-6)
    assert (scaled[:6000] == 0).all()
    assert (scaled[-3:] == 1).all()


def test_one_hot_voxel_does_not_darken_the_scan(brain) -> None:
    volume = brain()
    spiked = replace(volume, data=volume.data.copy())
    spiked.data[50, 60, 50] = 100
    plain, hot = (to_model_space(v, Recipe(intensity="percentile")).grid for v in (volume, spiked))
    darker = to_model_space(spiked, Recipe()).grid
    inside = plain > 0.2
    assert np.abs(hot - plain)[inside].mean() < 0.005
    assert darker[inside].mean() < 0.1


def test_the_median_rule_moves_with_no_vessel_and_keeps_air_at_zero() -> None:
    brain = RNG.normal(600, 80, 5001)
    for hot in (900.0, 90_000.0):
        data = np.concatenate([np.full(6000, 50.0), brain, np.full(20, hot)]).reshape(-1, 1, 1).astype("f4")
        scaled, low, high = median(data)
        middle = sorted(data[data > 60].ravel())[(5001 + 20) // 2]
        assert (low, high) == (50.0, pytest.approx(50 + 2 * (middle - 50), rel=1e-6))
        np.testing.assert_allclose(scaled, np.clip((data - 50) / (high - 50), 0, 1), atol=1e-6)
        assert float(np.median(scaled[6000:-20])) == pytest.approx(0.5, abs=2e-3)
    assert {*RULES, *LEVELS} == set(ANCHORS)


def test_a_mask_is_no_scan() -> None:
    with pytest.raises(NoBrain, match="mask"):
        percentile(np.pad(np.ones((4, 4, 4), np.float32), 3))


def test_recipes_from_before_slices_are_the_default() -> None:
    old = {k: v for k, v in Recipe().to_dict().items() if k not in ("middle_slices",)}
    assert Recipe.from_dict(old) == Recipe()
    assert Recipe().to_dict() == old  # and compare equal as they are stored
    sliced = Recipe(middle_slices=40)
    assert Recipe.from_dict(json.loads(json.dumps(sliced.to_dict()))) == sliced
    assert sliced.prepares_as(Recipe())
    assert not sliced.prepares_as(Recipe(intensity="percentile", middle_slices=40))


@pytest.mark.parametrize("count", [-1, 65, 2.5, "40", True])
def test_a_grid_has_only_so_many_slices(count: object) -> None:
    with pytest.raises(BundleError, match="middle slices"):
        Recipe.from_dict({"middle_slices": count})


# The bundle's tasks


def test_tasks_in_closed_form(bundle: Bundle) -> None:
    volumes = RNG.random((2, 64, 64, 64), dtype=np.float32)
    harmonized = open_networks(bundle, ON_CPU).harmonizer(volumes)
    np.testing.assert_allclose(harmonized, tiny_slices.expected_harmonized(volumes), atol=1e-6)
    medians = np.array([np.median(tiny_slices.expected_means(v)) for v in volumes])
    ages = open_networks(bundle, ON_CPU).age_predictor(volumes)
    np.testing.assert_allclose(ages.raw, 20 + 200 * medians, atol=1e-3)
    np.testing.assert_allclose(ages.corrected, (ages.raw - 9) / 0.8)
    diagnosis = open_networks(bundle, ON_CPU).diagnosis_predictor
    assert diagnosis.labels == tiny_slices.LABELS
    np.testing.assert_allclose(diagnosis(volumes), medians, atol=1e-6)
    assert diagnosis(volumes[0]).shape == (1,)
    with pytest.raises(GridMismatch):
        diagnosis(volumes[:, :32])


def test_the_median_is_not_the_mean(bundle: Bundle) -> None:
    """One wild slice moves a mean, not the answer."""
    volume = np.full((64, 64, 64), 0.25, np.float32)
    volume[:, :, 32] = 1
    (found,) = open_networks(bundle, ON_CPU).diagnosis_predictor(volume)
    assert found == pytest.approx(0.25, abs=1e-6)


def test_slices_outside_the_middle_do_not_matter(bundle: Bundle) -> None:
    predictor = open_networks(bundle, ON_CPU).age_predictor
    volume = RNG.random((64, 64, 64), dtype=np.float32)
    other = volume.copy()
    other[:, :, :22] = 0
    other[:, :, 42:] = 1
    assert predictor(volume).raw == predictor(other).raw


@pytest.mark.parametrize("labels", [None, [], ["patient"], ["a", "b", "c"]])
def test_a_diagnosis_without_its_two_labels_is_refused(tmp_path: Path, labels: list[str] | None) -> None:
    manifest = tiny_slices.slice_manifest()
    manifest["models"][2].pop("labels")
    if labels is not None:
        manifest["models"][2]["labels"] = labels
    bundle = write_bundle(tmp_path / "b.hz", manifest, tiny_slices.slice_files())
    with pytest.raises(BundleError, match="does not say which"):
        open_networks(bundle, ON_CPU)


def test_a_slice_of_another_size_is_refused(bundle: Bundle) -> None:
    harmonizer = open_networks(bundle, ON_CPU).harmonizer
    harmonizer.recipe = replace(harmonizer.recipe, grid_shape=(32, 64, 64))
    with pytest.raises(GridMismatch, match="32"):
        harmonizer(RNG.random((32, 64, 64), dtype=np.float32))


# Whole runs


def test_run_tells_the_probability_everywhere(tmp_path: Path, bundle: Bundle) -> None:
    paths = write_scans(tmp_path / "in", 2)
    options = RunOptions(space="both", dtype="float32", backend="onnxruntime-cpu")
    report = run_batch(paths, bundle, tmp_path / "out", options)
    assert report.exit_code == 0
    out = tmp_path / "out"
    grids = {
        scan.name: nibabel.load(
            out / f"{scan.name}_space-MNI152_res-64_desc-harmonized_T1w.nii.gz"
        ).get_fdata()
        for scan in report.scans
    }
    run = json.loads((out / "run.json").read_text())
    assert run["diagnosis"] == {"negative": "control", "positive": "patient"}
    assert run["options"]["batch"] == 1
    assert {step.split(":")[0] for step in run["backend"]["ladder"]} == {"harmonizer", "age", "diagnosis"}
    rows = [row.split("\t") for row in (out / "predictions.tsv").read_text().splitlines()]
    assert rows[0] == [
        *("input", "status", "age_raw", "age_corrected", "age", "brain_pad"),
        *("diagnosis_probability", "probability_of", "image_quality", "noise", "blur_mm", "ghosts", "field"),
        "flags",
    ]
    for scan, row, path in zip(report.scans, rows[1:], paths, strict=True):
        prepared = to_model_space(read_volume(path), Recipe.from_dict(dict(bundle.recipe))).grid
        np.testing.assert_allclose(grids[scan.name], tiny_slices.expected_volume(prepared), rtol=0, atol=1e-6)
        wanted = float(np.median(tiny_slices.expected_means(grids[scan.name])))
        assert scan.prediction.diagnosis_probability == pytest.approx(wanted, abs=2e-4)
        assert scan.prediction.age_raw == pytest.approx(20 + 200 * wanted, abs=0.01)
        assert row[6:8] == [f"{scan.prediction.diagnosis_probability:.4f}", "patient"]
        listed = next(s for s in run["scans"] if s["input"] == scan.input)
        assert listed["diagnosis_probability"] == scan.prediction.diagnosis_probability
        record = read_record(out / f"{scan.name}_desc-harmonized_T1w.json")
        assert record is not None
        assert record.prediction.diagnosis_probability == scan.prediction.diagnosis_probability
    page = (out / "report.html").read_text()
    assert '<th scope="col" class="num">Probability of patient</th>' in page
    assert "rather than control" in page
    assert page.count(f"<dd>{report.scans[0].prediction.diagnosis_probability:.2f}</dd>") >= 1


def test_resumed_run_keeps_the_probability(tmp_path: Path, bundle: Bundle) -> None:
    paths = write_scans(tmp_path / "in", 2)
    first = run_batch(paths[:1], bundle, tmp_path / "out")
    again = run_batch(paths, bundle, tmp_path / "out")
    whole = run_batch(paths, bundle, tmp_path / "whole")
    assert again.counts["skipped"] == 1
    assert (
        again.scans[0].prediction.diagnosis_probability
        == first.scans[0].prediction.diagnosis_probability
        is not None
    )
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    assert whole.exit_code == 0


def test_a_failed_scan_has_a_row_without_probability(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    report = run_batch([tmp_path / "broken.nii.gz"], bundle, tmp_path / "out")
    assert report.exit_code == 3
    row = (tmp_path / "out/predictions.tsv").read_text().splitlines()[1].split("\t")
    assert row[6:8] == ["n/a", "patient"]


def test_bundles_without_a_diagnosis_say_nothing_of_one(tmp_path: Path) -> None:
    bundle = load_bundle(tiny.make_tiny_bundle(tmp_path / "tiny.hz"))
    run_batch([write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)], bundle, tmp_path / "out")
    out = tmp_path / "out"
    assert "probability" not in (out / "predictions.tsv").read_text()
    assert "diagnosis" not in json.loads((out / "run.json").read_text())
    assert "Probability of" not in (out / "report.html").read_text()
    sidecar = json.loads((out / "sub-01_desc-harmonized_T1w.json").read_text())
    assert set(sidecar["hz"]["predictions"]) == {"age_raw", "age_corrected"}


def test_a_grid_of_its_own_names_its_volumes(tmp_path: Path) -> None:
    """Slice-wise networks may work on another grid than 64^3; `res-` in a volume's name says which."""
    manifest = tiny_slices.slice_manifest()
    manifest["recipe"] = Recipe(grid_shape=(64, 64, 50), middle_slices=20).to_dict()
    bundle = write_bundle(tmp_path / "b.hz", manifest, tiny_slices.slice_files())
    path = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    report = run_batch([path], bundle, tmp_path / "out", RunOptions(space="both"))
    assert report.exit_code == 0
    name = "sub-01_space-MNI152_res-64x64x50_desc-harmonized_T1w.nii.gz"
    assert name in report.scans[0].outputs
    assert nibabel.load(tmp_path / "out" / name).shape == (64, 64, 50)
    again = run_batch([path], bundle, tmp_path / "out", RunOptions(space="both"))
    assert again.counts["skipped"] == 1
    inside = tmp_path / "out/sub-01_T1w.nii.gz"
    inside.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=f"would overwrite the input {name}"):
        run_batch([inside, tmp_path / "out" / name], bundle, tmp_path / "out")


def test_batch_option_changes_no_byte(tmp_path: Path, bundle: Bundle) -> None:
    """Slices of a scan fill batches of their own, so that even the size of a batch is nothing to them."""
    paths = write_scans(tmp_path / "in", 3)
    made = []
    for batch in (1, 3):
        out = tmp_path / f"out{batch}"
        assert run_batch(paths, bundle, out, RunOptions(batch=batch, dtype="float32")).exit_code == 0
        made.append(results(out))
    assert made[0] == made[1]
