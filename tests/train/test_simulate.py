"""The simulated cohort: reproducible bytes, paired truth, sites that differ, on a head made by code."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hz_runtime.errors import UsageError
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import read_volume, write_volume
from hz_train.cohort import read_participants
from hz_train.simulate import Simulation, anatomy, label_maps, named_site, render, simulate, subjects
from hz_train.simulate_heads import Grid, label_head
from hz_train.simulate_site import SITES, Site

SIZE = 24
PAIR = (SITES[0], named_site("steep"))


def write_labels(path: Path, spacing: float = 3.0) -> Path:
    """A head made by code: cortex around white matter around two ventricles, in LAS order, off the centre."""
    shape = tuple(int(n / spacing) for n in (160, 190, 150))
    affine = np.diag([-spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (90.0, -60.0, 40.0)
    axes = [(np.arange(n) - (n - 1) / 2) * spacing for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt((x / 68) ** 2 + (y / 84) ** 2 + (z / 62) ** 2)
    labels = np.where(radius < 0.97, 2, 1) * (radius < 1.0)
    labels[radius < 0.8] = 3
    labels[(np.abs(x) < 2) & (radius > 0.8) & (radius < 1)] = 1  # the fissure
    ventricle = ((np.abs(x) - 12) / 8) ** 2 + ((y - 2) / 30) ** 2 + ((z - 6) / 11) ** 2 < 1
    labels[ventricle] = 1
    write_volume(path, labels.astype(np.float32), Geometry.from_affine(shape, affine), dtype="float32")
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    labels = write_labels(tmp_path_factory.mktemp("head") / "head_dseg.nii.gz")
    return Simulation(sites=PAIR, subjects_per_site=3, seed=5, heads=(labels,), head_ages=(30.0,), size=SIZE)


@pytest.fixture(scope="module")
def cohort(small: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("cohort"), small)


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines(), delimiter="\t"))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(small: Simulation, cohort: Path, tmp_path: Path) -> None:
    again = simulate(tmp_path / "again", small, workers=3)
    first, second = digests(cohort.parent), digests(again.parent)
    assert len(first) == 6 + 3 + 6 + 2  # scans; truth of those elsewhere; labels; table and record
    assert first == second
    other = simulate(tmp_path / "other", replace(small, seed=6, subjects_per_site=1))
    assert not set(digests(other.parent).values()) & set(first.values())


def test_the_table_is_a_cohort_with_truth(cohort: Path, small: Simulation) -> None:
    read = read_participants(cohort)
    assert read.sites == ("reference", "steep")
    assert len(read.subjects) == 6
    rows = rows_of(cohort)
    for row in rows:
        assert (cohort.parent / row["truth"]).is_file()
        assert (row["site"] == "reference") == (row["truth"] == row["file"])
    made = json.loads((cohort.parent / "simulation.json").read_text())
    assert made["reference"] == "reference" and made["seed"] == 5
    assert made["heads"][0]["name"] == "head_dseg.nii.gz" and len(made["heads"][0]["sha256"]) == 64
    assert str(small.heads[0].parent) not in json.dumps(made)


def test_files_hold_what_the_functions_render(cohort: Path, small: Simulation) -> None:
    for subject, row in zip(subjects(small), rows_of(cohort), strict=True):
        assert (row["participant_id"], row["site"], float(row["age"])) == (
            subject.name,
            subject.home,
            subject.age,
        )
        for column, site in (("file", small.site(subject.home)), ("truth", small.reference)):
            expected = render(subject, site, small)
            volume = read_volume(cohort.parent / row[column])
            np.testing.assert_allclose(volume.data, expected, atol=expected.max() / 32767)
            np.testing.assert_allclose(volume.affine, small.grid.affine)
        labels = read_volume(cohort.parent / row["labels"]).data
        np.testing.assert_array_equal(labels, anatomy(subject, small))
        assert set(np.unique(labels)) == {0, 1, 2, 3}


def test_every_site_shows_the_same_anatomy(small: Simulation) -> None:
    subject = subjects(small)[4]
    before = anatomy(subject, small)
    scans = [render(subject, site, small) for site in SITES]
    np.testing.assert_array_equal(anatomy(subject, small), before)
    for scan in scans:  # the outline is the label map's, to the voxel
        np.testing.assert_array_equal(scan > 0, before > 0)
    # White matter against the inner edge of CSF, whatever the scanner.
    for scan in scans:
        assert np.median(scan[before == 3]) > np.median(scan[before == 2]) > np.median(scan[before == 1])


def test_sites_and_sessions_have_their_own_noise(small: Simulation) -> None:
    subject = subjects(small)[0]
    site = Site("quiet", gain_sd=0.0)
    first, again = render(subject, site, small), render(subject, site, small)
    np.testing.assert_array_equal(first, again)
    second = render(subject, site, small, session=2)
    brain = first > 0
    difference = (second - first)[brain] / site.gain
    assert difference.std() == pytest.approx(np.sqrt(2) * site.noise, rel=0.1)
    assert abs(np.corrcoef(difference, (render(subject, site, small, 3) - first)[brain])[0, 1] - 0.5) < 0.05


def test_strength_zero_is_the_reference(small: Simulation) -> None:
    subject = subjects(small)[0]
    names = {site.name for site in SITES}
    assert len(names) == len(SITES) >= 5
    for site in SITES[1:]:
        none = replace(site.at(0.0), gain=1.0, gain_sd=0.0, noise=0.0, field=0.0)
        plain = Site(site.name, gain=1.0, gain_sd=0.0, noise=0.0, field=0.0)
        np.testing.assert_allclose(render(subject, none, small), render(subject, plain, small), atol=1e-6)
        assert site.at(1.0) == site
        assert site.at(2.0).gamma == pytest.approx(site.gamma**2)


def test_strength_is_of_the_departure_from_the_reference_site() -> None:
    with pytest.raises(UsageError, match="first site is flat"):
        Simulation(sites=(named_site("flat"), named_site("reference")), strength=2.0)


def shares(scan: np.ndarray, brain: np.ndarray) -> np.ndarray:
    counts = np.histogram(scan[brain] / scan.max(), 32, (0, 1))[0]
    return counts / counts.sum()


def test_sites_differ_more_than_people_do(small: Simulation) -> None:
    people = subjects(replace(small, subjects_per_site=4))[:4]
    brains = [anatomy(subject, small) > 0 for subject in people]
    seen = {
        site.name: [shares(render(s, site, small), b) for s, b in zip(people, brains, strict=True)]
        for site in SITES
    }

    def distance(a: np.ndarray, b: np.ndarray) -> float:  # earth mover's, in bins
        return float(np.abs(np.cumsum(a - b)).sum())

    within = np.mean([distance(a, b) for h in seen.values() for k, a in enumerate(h) for b in h[:k]])
    reference = seen.pop("reference")
    between = {
        name: np.mean([distance(a, b) for a, b in zip(reference, there, strict=True)])
        for name, there in seen.items()
    }
    assert min(between.values()) > within  # of people from 20 to 85
    assert np.mean(list(between.values())) > 2 * within


def test_people_are_balanced_unless_asked() -> None:
    simulation = Simulation(subjects_per_site=50, seed=1)
    people = subjects(simulation)
    assert len({s.name for s in people}) == len(people) == 50 * len(SITES)
    for site in SITES:
        here = [s for s in people if s.home == site.name]
        assert sum(s.group == "patient" for s in here) == 25
        assert sum(s.sex == "M" for s in here) == 25
        ages = {g: np.mean([s.age for s in here if s.group == g]) for g in ("control", "patient")}
        assert abs(ages["control"] - ages["patient"]) < 3
    confounded = subjects(replace(simulation, confound_age=True, confound_group=True))
    means = [np.mean([s.age for s in confounded if s.home == site.name]) for site in SITES]
    assert (np.diff(means) > 2).all() and means[-1] - means[0] > 25
    share = [np.mean([s.group == "patient" for s in confounded if s.home == x.name]) for x in SITES]
    assert share[0] == pytest.approx(0.2, abs=0.03) and share[-1] == pytest.approx(0.8, abs=0.03)


def test_travelling_subjects_are_scanned_everywhere(small: Simulation, tmp_path: Path) -> None:
    table = simulate(tmp_path, replace(small, subjects_per_site=2, travelling=1, sessions=2))
    rows = rows_of(table)
    assert len(rows) == 2 * (2 * 2 + 1 * 2)  # a site: one subject at two sites, one at its own; twice each
    read = read_participants(table)
    both = [s for s in read.subjects if len({x.site for x in read.of([s]).scans}) == 2]
    assert len(both) == 2
    for row in rows:
        if row["participant_id"] in both:
            assert "acq-reference" in row["truth"] and row["truth"].startswith("scans/")


def test_a_cohort_is_not_overwritten_by_accident(cohort: Path, small: Simulation) -> None:
    with pytest.raises(UsageError, match="overwrite"):
        simulate(cohort.parent, small)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sites": ()},
        {"sites": (SITES[0], SITES[0])},
        {"sites": (Site("a/b"),)},
        {"size": 8},
        {"ages": (60.0, 20.0)},
        {"subjects_per_site": 0},
        {"head_ages": (1.0, 2.0)},
    ],
)
def test_impossible_simulations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Simulation(**wrong)


def test_only_label_maps_are_anatomy(tmp_path: Path, head) -> None:
    data, affine = head()
    path = tmp_path / "scan.nii.gz"
    write_volume(path, data, Geometry.from_affine(data.shape, affine))
    with pytest.raises(UsageError, match="label map"):
        label_head(path, Grid.of(SIZE))
    solid = np.where(data > 0, 3, 0).astype(np.float32)  # no CSF but a slice of it at the top
    solid[:, :, 37:39][data[:, :, 37:39] > 0] = 1
    solid[:, :, :12][data[:, :, :12] > 0] = 2
    write_volume(path, solid, Geometry.from_affine(data.shape, affine), dtype="float32")
    with pytest.raises(UsageError, match="no ventricles"):
        label_head(path, Grid.of(SIZE))


def test_label_maps_are_found_beside_the_scans(cohort: Path, tmp_path: Path) -> None:
    heads, ages = label_maps(cohort)
    assert len(heads) == 6 and all(path.name.endswith("_dseg.nii.gz") for path in heads)
    assert ages == tuple(float(row["age"]) for row in rows_of(cohort))
    for name in ("a_T1w.nii.gz", "a_tissues.nii.gz", "b_T1w.nii.gz"):
        (tmp_path / name).write_bytes(b"-")
    table = tmp_path / "participants.tsv"
    head = "file\tsite\tage\tsex\tgroup\n"
    table.write_text(head + "a_T1w.nii.gz\tx\tn/a\tF\tc\nb_T1w.nii.gz\tx\t30\tF\tc\n")
    found = ((tmp_path / "a_tissues.nii.gz").resolve(),), (None,)
    assert label_maps(table) == found
    # n/a in the column is no name of a file: what lies beside the scan is taken
    named = head.replace("group", "group\tlabels") + "a_T1w.nii.gz\tx\tn/a\tF\tc\tn/a\n"
    table.write_text(named)
    assert label_maps(table) == found
    table.write_text(head + "b_T1w.nii.gz\tx\t30\tF\tc\n")
    with pytest.raises(UsageError, match="label map"):
        label_maps(table)


def test_a_simulated_cohort_can_be_simulated_from(cohort: Path, small: Simulation) -> None:
    heads, ages = label_maps(cohort)
    second = replace(small, heads=heads, head_ages=ages)
    assert len({subject.head for subject in subjects(replace(second, subjects_per_site=30))}) == 6
    labels = anatomy(subjects(second)[0], second)
    assert set(np.unique(labels)) == {0, 1, 2, 3}


def test_without_nilearn_label_maps_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from hz_train.simulate_heads import built_in_head

    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(UsageError, match="nilearn"):
        built_in_head(Grid.of(SIZE))


def test_real_label_maps(scans: Path) -> None:
    heads, ages = label_maps(scans / "real_cohort_2mm" / "participants.tsv")
    assert len(heads) == 27
    assert None not in ages
    simulation = Simulation(subjects_per_site=1, heads=heads[-3:], head_ages=ages[-3:], size=SIZE, seed=2)
    for subject in subjects(simulation):
        labels = anatomy(subject, simulation)
        counts = np.bincount(labels.ravel(), minlength=4)[1:] * simulation.grid.voxel_cm3
        assert 900 < counts.sum() < 2000
        assert (counts / counts.sum() > (0.01, 0.3, 0.15)).all()
