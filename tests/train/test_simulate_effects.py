"""Effects of the size that is claimed: the built-in head, 160 subjects, 32 voxels a side, seed 3."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import read_volume, write_volume
from hz_runtime.model_space.recipe import Recipe, to_model_space
from hz_train.simulate import Simulation, anatomy, render, subjects
from hz_train.simulate_anatomy import GREY_YEARLY, REGIONS, Subject, ventricle_growth
from hz_train.simulate_heads import Grid
from hz_train.simulate_site import SITES, Site


@pytest.fixture(scope="module")
def built_in() -> Simulation:
    pytest.importorskip("nilearn")
    return Simulation(sites=SITES[:1], subjects_per_site=160, seed=3, size=32)


def boxes(grid: Grid) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where ventricles lie, and where the disease acts: fixed places of the template, (D, H, W) bool each."""
    axes = [grid.affine[k, k] * np.arange(n) + grid.affine[k, 3] for k, n in enumerate(grid.shape)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    middle = (np.abs(x) < 30) & (y > -70) & (y < 32) & (z > -4) & (z < 40)
    centre = Recipe().centre_mm
    regions = [
        sum(((a - c - o) / sd) ** 2 for a, c, o, sd in zip((x, y, z), centre, at, (sd,) * 3, strict=True))
        < 1.4
        for at, sd in REGIONS
    ]
    return middle, regions


def volumes(labels: np.ndarray, grid: Grid) -> list[float]:
    """Log ventricular volume, grey matter and CSF as shares of the brain, and CSF's share of each region."""
    middle, regions = boxes(grid)
    brain = float((labels > 0).sum())
    whole = [
        np.log(((labels == 1) & middle).sum() + 1),
        (labels == 2).sum() / brain,
        (labels == 1).sum() / brain,
    ]
    return [*whole, *(((labels == 1) & r).sum() / ((labels > 0) & r).sum() for r in regions)]


@pytest.fixture(scope="module")
def measured(built_in: Simulation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features (n, 6), ages (n,), patients (n,))"""
    people = subjects(built_in)
    features = [volumes(anatomy(subject, built_in), built_in.grid) for subject in people]
    return (
        np.array(features),
        np.array([s.age for s in people]),
        np.array([s.group == "patient" for s in people]),
    )


def cross_validated(
    features: np.ndarray, wanted: np.ndarray, folds: int = 5, ridge: float = 1.0
) -> np.ndarray:
    """Ridge regression in closed form; the prediction of each row by the other folds."""
    out = np.empty(len(wanted))
    fold = np.random.default_rng(0).permutation(len(wanted)) % folds
    for k in range(folds):
        mean, sd = features[fold != k].mean(0), features[fold != k].std(0)
        x = (features - mean) / sd
        level = wanted[fold != k].mean()
        train = x[fold != k]
        weights = np.linalg.solve(
            train.T @ train + ridge * np.eye(x.shape[1]), train.T @ (wanted[fold != k] - level)
        )
        out[fold == k] = x[fold == k] @ weights + level
    return out


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    gaps = scores[positive][:, None] - scores[~positive]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def test_age_can_be_read_from_anatomy_but_not_trivially(measured) -> None:
    features, ages, patients = measured
    predicted = cross_validated(features[~patients, :3], ages[~patients])
    assert 0.65 < np.corrcoef(predicted, ages[~patients])[0, 1] < 0.93
    ventricles = np.corrcoef(features[~patients, 0], ages[~patients])[0, 1]
    grey = np.corrcoef(features[~patients, 1], ages[~patients])[0, 1]
    assert 0.5 < ventricles < 0.92
    assert -0.92 < grey < -0.5


def test_a_diagnosis_is_subtle(measured) -> None:
    features, _, patients = measured
    regional = area(cross_validated(features, patients.astype(float)), patients)
    whole = area(cross_validated(features[:, :3], patients.astype(float)), patients)
    assert 0.72 < regional < 0.97
    assert 0.5 < whole < regional


def test_the_sites_shift_doubles_the_error_of_a_predictor_made_at_the_reference(built_in) -> None:
    """Ridge regression on 8^3 block means of min-max scaled scans: fitted on 100 people, asked about 30."""
    simulation = replace(built_in, sites=SITES)
    people = [replace(s, home="reference") for s in subjects(built_in)]
    ages = np.array([s.age for s in people])

    def blocks(site: Site, who: list[Subject]) -> np.ndarray:
        scans = (render(s, site, simulation) for s in who)
        return np.array([(v / v.max()).reshape(8, 4, 8, 4, 8, 4).mean((1, 3, 5)).ravel() for v in scans])

    train = blocks(SITES[0], people[:100])
    used = train.std(0) > 0.01
    mean, sd = train[:, used].mean(0), train[:, used].std(0)
    x = (train[:, used] - mean) / sd
    dual = np.linalg.solve(x @ x.T + 300 * np.eye(100), ages[:100] - ages[:100].mean())

    def error(site: Site) -> float:
        there = (blocks(site, people[100:130])[:, used] - mean) / sd
        return float(np.abs(there @ x.T @ dual + ages[:100].mean() - ages[100:130]).mean())

    own = error(SITES[0])
    assert own < 0.8 * np.abs(ages[100:130] - ages[:100].mean()).mean()
    away = [error(site) for site in simulation.shifted_sites[1:]]
    assert min(away) > own
    assert np.mean(away) > 2 * own
    assert error(SITES[1].at(0.25)) < away[0]


def test_disease_is_where_it_is_said_to_be(built_in: Simulation) -> None:
    """The same subjects with and without it: CSF widens in the regions, and hardly elsewhere."""
    grid = built_in.grid
    middle, regions = boxes(grid)
    region = np.logical_or.reduce(regions)
    gained = []
    for subject in subjects(built_in)[:12]:
        ill = anatomy(replace(subject, group="patient"), built_in)
        well = anatomy(replace(subject, group="control"), built_in)
        np.testing.assert_array_equal(ill > 0, well > 0)
        none = anatomy(replace(subject, group="patient"), replace(built_in, effect=0))
        np.testing.assert_array_equal(none, well)
        change = (ill == 1).astype(int) - (well == 1)
        gained.append([change[region].mean(), change[middle].mean(), change[~region & ~middle].mean()])
    in_regions, ventricles, elsewhere = np.mean(gained, 0)
    assert in_regions > 0.03
    assert ventricles > 0.002
    assert elsewhere < in_regions / 10


def test_ages_change_volumes_by_the_rates_stated(built_in: Simulation) -> None:
    """One subject at 30 and at 80: log volumes move by what the module says, within the voxels' precision."""
    grid = replace(built_in, size=64).grid
    simulation = replace(built_in, size=64)
    middle, _ = boxes(grid)
    changes = []
    for subject in (replace(s, group="control") for s in subjects(built_in)[:4]):
        young, old = (anatomy(replace(subject, age=age), simulation) for age in (30.0, 80.0))
        np.testing.assert_array_equal(young > 0, old > 0)  # the skull does not shrink
        changes.append(
            [
                np.log(((old == 1) & middle).sum() / ((young == 1) & middle).sum()),
                np.log((old == 2).sum() / (young == 2).sum()),
            ]
        )
    ventricle, grey = np.mean(changes, 0)
    assert ventricle == pytest.approx(ventricle_growth(80) - ventricle_growth(30), abs=0.35)
    assert grey == pytest.approx(50 * GREY_YEARLY, abs=0.1)


def test_growth_of_the_ventricles_is_smooth() -> None:
    ages = np.linspace(20, 90, 200)
    growth = np.array([ventricle_growth(age) for age in ages])
    assert growth[0] == 0
    slope = np.gradient(growth, ages)
    assert slope[5] == pytest.approx(0.008, abs=1e-6)
    assert slope[np.searchsorted(ages, 75)] == pytest.approx(0.033, abs=0.001)


def test_scans_are_prepared_without_flags(built_in: Simulation, tmp_path: Path) -> None:
    """The runtime takes every simulated scan as it is: in place, whole, and of a brain's size."""
    simulation = replace(built_in, sites=SITES, subjects_per_site=2, size=64)
    features = []
    for number, subject in enumerate(subjects(simulation)):
        path = tmp_path / f"{number}.nii.gz"
        scan = render(subject, simulation.site(subject.home), simulation)
        write_volume(path, scan, Geometry.from_affine(scan.shape, simulation.grid.affine))
        prepared = to_model_space(read_volume(path), Recipe())
        assert prepared.flags == ()
        assert prepared.shift_mm == (0, 0, 0)
        assert prepared.grid.shape == (64, 64, 64)
        features.append(prepared.features)
    assert len(features) == 2 * len(SITES)
    assert all(900 < f["brain_cm3"] < 2000 for f in features)  # of adults; ventricles and sulci count
    assert 900 < np.mean([f["brain_cm3"] for f in features]) < 1900


@pytest.mark.parametrize("size", [32, None])
def test_any_size_shows_the_same_head(built_in: Simulation, size: int | None) -> None:
    subject = Subject(0, "sub-0001", "reference", 50.0, "F", "control", 0, 3)
    simulation = replace(built_in, size=size)
    cm3 = (anatomy(subject, simulation) > 0).sum() * simulation.grid.voxel_cm3
    expected = (anatomy(subject, replace(built_in, size=64)) > 0).sum() * Grid.of(64).voxel_cm3
    assert cm3 == pytest.approx(expected, rel=0.03)
