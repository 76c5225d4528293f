"""hz-prepare, as a user calls it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

from help_pages import help_of
from hz_cli.prepare import main
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import Recipe, to_model_space
from small_heads import made_head, write_head

pytest.importorskip("niimath")


def run(*arguments: object) -> tuple[int, str]:
    """(exit code, what was printed)."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one whole head, its mask beside it, and two files that are none."""
    folder = tmp_path_factory.mktemp("raw")
    head, brain, affine = made_head()
    write_head(folder / "sub-01_T1w.nii.gz", head, affine)
    write_head(folder / "mask" / "mask.nii.gz", brain.astype(np.float32), affine)
    write_head(folder / "sub-02_T1w.nii.gz", head, np.diag([1.0, 1.0, 4.8, 1.0]))
    (folder / "sub-03_T1w.nii.gz").write_bytes(b"\x1f\x8b nothing")
    return folder


@pytest.fixture(scope="module")
def batch(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """(output folder, exit code, output) of a batch of the good head and the two others."""
    out = tmp_path_factory.mktemp("prepared")
    code, output = run(*sorted(heads.glob("*.nii.gz")), "--out", out, "--workers", 2)
    return out, code, output


def test_one_bad_scan_stops_no_batch(batch: tuple[Path, int, str]) -> None:
    out, code, output = batch
    assert code == 3
    assert "3 scans: 1 ok, 2 failed" in output
    assert "Traceback" not in output
    with open(out / "preparation.tsv", newline="") as table:
        good, thick, damaged = csv.DictReader(table, delimiter="\t")
    assert [row["status"] for row in (good, thick, damaged)] == ["ok", "failed", "failed"]
    assert "slice thickness" in thick["reason"] and good["reason"] == "n/a"
    assert [row["failed_gates"] for row in (good, thick, damaged)] == ["n/a", "slice thickness", "n/a"]
    assert (good["slice_thickness"], thick["slice_thickness"]) == ("2", "4.8")
    assert float(good["similarity"]) > 0.9  # its brain is the template's
    assert (thick["similarity"], damaged["grey_levels"]) == ("n/a", "n/a")  # gates that were not reached
    assert not list(out.glob("sub-02*.nii.gz")) and not list(out.glob(".*tmp"))
    refused = json.loads((out / "sub-02_desc-preparation.json").read_text())
    verdict = {gate["gate"]: gate for gate in refused["gates"]}["slice thickness"]
    assert (verdict["passed"], verdict["value"], verdict["limits"]) == (False, 4.8, [0, 3])


def test_what_is_written(batch: tuple[Path, int, str]) -> None:
    out, _, _ = batch
    recipe = Recipe()
    brain = read_volume(out / "sub-01_space-MNI152_res-2_desc-brain_T1w.nii.gz")
    assert brain.shape == recipe.template_shape
    assert np.allclose(brain.affine, recipe.template_affine)
    mask = read_volume(out / "sub-01_space-MNI152_res-2_desc-brain_mask.nii.gz").data > 0.5
    assert not brain.data[~mask].any()
    assert not to_model_space(brain, recipe).flags  # what hz-run makes of it: in its place
    for name in ("sub-01_desc-brain_mask.nii.gz", "sub-01_space-MNI152_res-2_desc-brain_mask.nii.gz"):
        image = nibabel.load(out / name)
        assert image.get_data_dtype() == np.uint8
        assert set(np.unique(image.dataobj.get_unscaled())) == {0, 1}
        assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    native = read_volume(out / "sub-01_desc-brain_T1w.nii.gz")
    assert native.shape == made_head()[0].shape
    transform = json.loads((out / "sub-01_from-T1w_to-MNI152_mode-image_xfm.json").read_text())
    assert transform["dof"] == 6
    assert transform["scales"] == pytest.approx([1, 1, 1], abs=1e-3)
    assert transform["template"]["name"] == "MNI152"
    record = json.loads((out / "sub-01_desc-preparation.json").read_text())
    assert all(gate["passed"] for gate in record["gates"])
    assert set(record["hz"]["outputs"]) == {p.name for p in out.glob("sub-01*")} - {
        "sub-01_desc-preparation.json"
    }


def test_a_second_run_goes_on(batch: tuple[Path, int, str], heads: Path) -> None:
    out, _, _ = batch
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    code, output = run(heads / "sub-01_T1w.nii.gz", "--out", out)
    assert code == 0
    assert "1 scan: 1 done before" in output
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}


def test_a_given_mask_is_used(heads: Path, tmp_path: Path) -> None:
    mask = heads / "mask" / "mask.nii.gz"
    code, output = run(heads / "sub-01_T1w.nii.gz", "--out", tmp_path, "--brain-mask", mask, "--dof", 12)
    assert code == 0, output
    kept = read_volume(tmp_path / "sub-01_desc-brain_mask.nii.gz").data > 0.5
    assert np.array_equal(kept, read_volume(mask).data > 0.5)


def test_a_mask_is_for_one_scan(heads: Path, tmp_path: Path) -> None:
    mask = heads / "mask" / "mask.nii.gz"
    code, output = run(heads, "--out", tmp_path, "--brain-mask", mask)
    assert code == 2 and "mask of one scan" in output
    code, output = run(heads, "--out", tmp_path, "--brain-mask", "best")
    assert code == 2 and "best" in output


def test_a_fault_in_one_scan_is_told_and_logged(
    heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of hz")

    monkeypatch.setattr("hz_runtime.preparation.preparer.prepare_head", broken)
    code, output = run(heads / "sub-01_T1w.nii.gz", "--out", tmp_path)
    assert code == 3 and "a fault of hz" in output
    assert "hz-prepare.log" in output
    assert "RuntimeError" in (tmp_path / "hz-prepare.log").read_text()
    assert not (tmp_path / "hz-run.log").exists()


def test_help_is_light() -> None:
    shown, imported = help_of("prepare")
    assert "--brain-mask" in shown and "--dof" in shown
    assert not imported


def test_a_real_head(scans: Path, tmp_path: Path) -> None:
    thick = scans / "hostile" / "prisma_2D_sag_T1_thick.nii.gz"
    tomography = scans / "nasty" / "niivue__shear.nii.gz"
    whole = scans / "wholehead" / "IXI034-HH-1260_T1_2mm.nii.gz"
    code, _ = run(whole, thick, tomography, "--out", tmp_path, "--plain")
    assert code == 3
    reasons = {line.split("\t")[0]: line for line in (tmp_path / "preparation.tsv").read_text().splitlines()}
    assert "\tok\t" in reasons[whole.name]
    assert "slice thickness" in reasons[thick.name]
    assert "Hounsfield" in reasons[tomography.name]
    made = read_volume(tmp_path / "IXI034-HH-1260_T1_2mm_space-MNI152_res-2_desc-brain_T1w.nii.gz")
    assert not to_model_space(made, Recipe()).flags
