"""hz-train simulate and hz-train outliers, as a user calls them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from hz_cli.train import train
from hz_runtime.batch.run import run_batch
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import UsageError
from hz_runtime.io.volume import read_volume, write_volume
from hz_runtime.model_space.recipe import Recipe
from hz_train.cohort import read_participants
from small_scans import write_scans


def run(*arguments: object) -> str:
    """Output of an hz-train command that succeeds; other errors than click's are raised."""
    result = CliRunner().invoke(train, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def table_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))


def test_simulate_from_the_built_in_head(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    output = run(
        *("simulate", "--out", tmp_path, "--sites", "reference,coil", "--subjects-per-site", 2),
        *("--size", 16, "--seed", 4, "--confound-age", "--strength", 2, "--ages", 30, 60),
    )
    assert "2 sites, anatomy of the MNI152 maps" in output
    assert "--source coil --target reference" in output
    cohort = read_participants(tmp_path / "participants.tsv")
    assert cohort.sites == ("coil", "reference")
    ages = {site: [s.age for s in cohort.at([site]).scans] for site in cohort.sites}
    assert 30 <= max(ages["reference"]) <= 45 <= min(ages["coil"]) <= 60
    made = json.loads((tmp_path / "simulation.json").read_text())
    assert made["strength"] == 2 and made["heads"] == "MNI152" and made["size"] == 16


def test_a_cohort_gives_its_label_maps(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    sites = ("--sites", "reference", "--subjects-per-site", 2, "--size", 48)
    run("simulate", "--out", tmp_path / "a", *sites)
    first = tmp_path / "a" / "participants.tsv"
    assert "anatomy of 2 label maps" in run("simulate", "--out", tmp_path / "b", "--cohort", first, *sites)
    one = tmp_path / "a" / "labels" / "sub-0001_dseg.nii.gz"
    assert "anatomy of 1 label maps" in run("simulate", "--out", tmp_path / "c", "--anatomy", one, *sites)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "big"), "native"),
        (("--anatomy", "built-in", "--anatomy", "x.nii.gz"), "not both"),
        (("--anatomy", "x.nii.gz", "--cohort", "y.tsv"), "not both"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(train, ["simulate", "--out", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_unknown_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        run("simulate", "--out", tmp_path, "--sites", "reference,nowhere")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twelve scans of one site, the last of which is half a brain, one that is torn, and two elsewhere."""
    paths = write_scans(tmp_path / "scans", 15)
    image = nib.load(paths[11])
    data = np.asarray(image.dataobj, np.float32)
    data[data.shape[0] // 2 :] = 0
    nib.save(nib.Nifti1Image(data, image.affine), paths[11])
    paths[12].write_bytes(paths[12].read_bytes()[:-200])
    rows = ["file\tparticipant_id\tsite\tage\tsex\tgroup\ttruth"]
    for number, path in enumerate(paths):
        site = "here" if number < 13 else "there"
        rows.append(f"scans/{path.name}\tsub-{number}\t{site}\t40\tF\tcontrol\tn/a")
    table = tmp_path / "participants.tsv"
    table.write_text("\n".join(rows) + "\n")
    return table


def test_outliers_finds_the_bad_scans(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "screened"
    output = run("outliers", "--cohort", cohort, "--out", out)
    assert f"--cohort {cohort} --out {out} --exclude" in output
    assert "site there: fewer than 8 scans, not compared" in output
    rows = table_of(out / "outliers.tsv")
    assert len(rows) == 15
    found = {row["participant_id"]: row for row in rows if row["outlier"] == "yes"}
    assert {"sub-11", "sub-12"} <= set(found) and len(found) <= 3
    assert "robust score" in found["sub-11"]["reasons"]
    assert float(found["sub-11"]["score"]) > 5 and found["sub-12"]["score"] == "inf"
    assert [row["outlier"] for row in rows[-2:]] == ["n/a", "n/a"]
    page = (out / "outliers.html").read_text()
    assert page.count("data:image/png;base64,") == len(found) - 1  # the torn one has no picture
    assert "sub-12_T1w.nii.gz" in page and "<script" not in page
    assert not (out / "participants.tsv").exists()


def test_outliers_can_be_left_out(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "screened"
    output = run("outliers", "--cohort", cohort, "--out", out, "--exclude")
    assert f"--cohort {out / 'participants.tsv'}" in output
    kept = read_participants(out / "participants.tsv")
    assert not {"sub-11", "sub-12"} & set(kept.subjects)
    assert len(kept.scans) >= 12
    originals = {s.path for s in read_participants(cohort).scans}
    assert {s.path for s in kept.scans} <= originals
    assert {row["truth"] for row in table_of(out / "participants.tsv")} == {"n/a"}


def test_the_original_table_is_never_replaced(cohort: Path) -> None:
    before = cohort.read_bytes()
    run("outliers", "--cohort", cohort, "--out", cohort.parent, "--exclude")
    assert cohort.read_bytes() == before
    assert (cohort.parent / "participants_without_outliers.tsv").is_file()


def test_a_threshold_can_be_given(cohort: Path, tmp_path: Path) -> None:
    run("outliers", "--cohort", cohort, "--out", tmp_path / "a", "--threshold", 1000)
    rows = table_of(tmp_path / "a" / "outliers.tsv")
    assert [row["participant_id"] for row in rows if row["outlier"] == "yes"] == ["sub-12"]


def test_the_real_cohort_is_screened(scans: Path, tmp_path: Path) -> None:
    """Ten scans of one site: a table and a page; at most a tenth flagged, as documented for ten a site."""
    source = scans / "real_cohort_2mm" / "participants.tsv"
    lines = source.read_text().splitlines()
    rows = [line for line in lines[1:] if line.split("\t")[2] == "ds000011"]
    names = [f"{source.parent / row.split(chr(9))[0]}\t" + row.split("\t", 1)[1] for row in rows]
    table = tmp_path / "participants.tsv"
    table.write_text("\n".join([lines[0], *names]) + "\n")
    run("outliers", "--cohort", table, "--out", tmp_path / "out")
    found = table_of(tmp_path / "out" / "outliers.tsv")
    assert len(found) == 10
    assert sum(row["outlier"] == "yes" for row in found) <= 1


def test_a_bundle_knows_its_training_scans(tmp_path: Path) -> None:
    """Simulated cohort, trained, exported, run: half a brain is flagged, and a scan of the cohort is not."""
    pytest.importorskip("torch")
    pytest.importorskip("nilearn")
    from hz_export.assemble import export_bundle
    from hz_export.export_options import ExportOptions
    from hz_train.cyclegan_task import Settings
    from hz_train.cyclegan_training import Preset, train_cyclegan
    from hz_train.fit import Schedule

    run(
        *("simulate", "--out", tmp_path, "--sites", "reference,flat"),
        *("--subjects-per-site", 6, "--size", 32, "--effect", 0),
    )
    cohort = read_participants(tmp_path / "participants.tsv")
    preset = Preset(
        Schedule(epochs=1, batch=4, lr=1e-3, milestones=(), picture_every=0), Settings(width=2), n4=False
    )
    recipe = Recipe(grid_shape=(32, 32, 32))
    made = train_cyclegan(cohort, ["flat"], "reference", tmp_path / "run", preset, 0.0, recipe, "cpu")
    export_bundle([made], tmp_path / "small.hz", ExportOptions(check_parity=False))
    bundle = load_bundle(tmp_path / "small.hz")
    assert bundle.cohort["reference"]["n"] == 12

    volume = read_volume(cohort.scans[0].path)
    half = volume.data.copy()
    half[half.shape[0] // 2 :] = 0
    write_volume(tmp_path / "half.nii.gz", half, volume.geometry)
    report = run_batch([cohort.scans[0].path, tmp_path / "half.nii.gz"], bundle, tmp_path / "out")
    unlike = [[flag for flag in scan.flags if "unlike the training scans" in flag] for scan in report.scans]
    assert not unlike[0] and unlike[1]
