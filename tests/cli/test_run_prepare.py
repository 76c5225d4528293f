"""hz-run --prepare as a user meets it: raw heads and DICOM in, results or reasons out."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from nibabel.processing import resample_from_to

import tiny
from hz_runtime.batch.inputs import collect
from hz_runtime.dicom.scans import DicomScans
from hz_runtime.io.volume import Geometry, read_volume, write_volume
from small_dicom import write_other, write_series
from small_heads import fruit, write_head
from small_scans import SHAPE, small_head, write_scan

pytest.importorskip("niimath")

DICOM = ("pydicom", "dcm2niix")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.hz")


@pytest.fixture
def hz_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path):
    """Call the command in this process, signals left as they were; temporary files in tmp_path/"tmp"."""
    from hz_cli import run

    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("hz_cli.batch.signal.signal", lambda *_: None)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return lambda *args: CliRunner().invoke(run.main, [*map(str, args), "--model", str(model), "--quiet"])


def scans_of(out: Path) -> list[dict]:
    return json.loads((out / "run.json").read_text())["scans"]


def alike(one: np.ndarray, other: np.ndarray, where: np.ndarray, size: int = 8) -> list[float]:
    """Correlations in blocks that are too small for the receive field, which is corrected, to vary."""
    found = []
    for start in np.ndindex(*(n // size for n in where.shape)):
        block = tuple(slice(size * n, size * (n + 1)) for n in start)
        inside = where[block]
        if inside.mean() > 0.8:
            found.append(float(np.corrcoef(one[block][inside], other[block][inside])[0, 1]))
    return found


def test_a_real_head_from_raw_to_result(hz_run, scans: Path, tmp_path: Path) -> None:
    """The voxels of the raw head, and on them the brain that others found in it."""
    source = scans / "wholehead" / "IXI034-HH-1260_T1_2mm.nii.gz"
    asked = ("--prepare", source, "--out", tmp_path / "out", "--age", "47.5")
    done = hz_run(*asked)
    assert done.exit_code == 0, done.output
    (scan,) = scans_of(tmp_path / "out")
    assert scan["age"] == 47.5 and scan["age_raw"] is not None
    assert scan["gates"] and all(gate["passed"] for gate in scan["gates"])
    raw = nibabel.load(source)
    made = nibabel.load(tmp_path / "out" / scan["outputs"][0])
    assert made.shape == raw.shape
    assert np.array_equal(made.affine, raw.affine)
    inside = made.get_fdata() > 0
    elsewhere = nibabel.load(scans / "real_cohort_2mm" / "IXI034-HH-1260_T1w.nii.gz")
    truth = resample_from_to(elsewhere, raw, order=0).get_fdata() > 0
    assert 2 * (inside & truth).sum() / (inside.sum() + truth.sum()) > 0.9
    assert np.median(alike(made.get_fdata(), raw.get_fdata(), inside & truth)) > 0.95
    assert (made.get_fdata() == 0).mean() > 0.7  # most of the picture is no brain
    assert "figure" in scan and (tmp_path / "out" / "report.html").is_file()
    again = hz_run(*asked)
    assert again.stdout.startswith("1 scan: 1 skipped")
    assert scans_of(tmp_path / "out")[0]["gates"] == scan["gates"]
    assert not list((tmp_path / "tmp").iterdir())


def test_refused_scans_say_why_and_leave_nothing(hz_run, tmp_path: Path) -> None:
    made = tmp_path / "in"
    data, affine = fruit()
    write_head(made / "sub-01_T1w.nii.gz", data, np.diag([1.5, 1.5, 6.0, 1.0]))
    write_head(made / "sub-02_T1w.nii.gz", np.zeros_like(data), affine)
    labels = np.round(data / data.max() * 3).astype(np.float32)
    write_volume(made / "sub-03_T1w.nii.gz", labels, Geometry.from_affine(data.shape, affine), dtype="uint8")
    out = tmp_path / "out"
    done = hz_run("--prepare", made, "--out", out)
    assert done.exit_code == 3
    assert "Traceback" not in done.output
    thick, empty, label_map = scans_of(out)
    assert {scan["status"] for scan in (thick, empty, label_map)} == {"failed"}
    refusing = [[g["gate"] for g in s["gates"] if not g["passed"]] for s in (thick, empty, label_map)]
    assert refusing == [["slice thickness"], [], ["grey levels"]]
    assert "every voxel has the same value" in empty["reason"]
    assert "label map" in label_map["reason"]
    assert not list(out.glob("sub-*")) and not list((out / "figures").glob("*"))
    rows = [line.split("\t") for line in (out / "predictions.tsv").read_text().splitlines()]
    assert [row[2] for row in rows[1:]] == ["n/a"] * 3


def test_choices_of_preparation_need_it(hz_run, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii.gz")
    done = hz_run(scan, "--dof", "12", "--brain-mask", "none", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "--dof and --brain-mask without --prepare" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_scan_out_of_place_is_moved_and_its_shift_kept(hz_run, tmp_path: Path) -> None:
    data, affine = small_head()
    affine[:3, 3] += (0, 30, 0)
    write_volume(tmp_path / "a.nii.gz", data, Geometry.from_affine(SHAPE, affine))
    assert hz_run(tmp_path / "a.nii.gz", "--out", tmp_path / "out").exit_code == 0
    (scan,) = scans_of(tmp_path / "out")
    assert not any("shift" in flag for flag in scan["flags"])  # it is undone on the way back
    sidecar = json.loads((tmp_path / "out" / "a_desc-harmonized_T1w.json").read_text())
    assert sidecar["TranslationMm"][1] == pytest.approx(-30, abs=2)
    assert scan["gates"] == []


def test_dicom_is_converted_without_identity_and_removed(hz_run, tmp_path: Path) -> None:
    """A folder, an archive and a damaged archive; small heads of thick slices, which a gate refuses."""
    for package in DICOM:
        pytest.importorskip(package)
    write_series(tmp_path / "Doe^Jane")
    write_other(tmp_path / "zipped", 2, StudyInstanceUID="2.25.7")
    with zipfile.ZipFile(tmp_path / "Doe_Jane.zip", "w") as archive:
        for path in sorted((tmp_path / "zipped").iterdir()):
            archive.write(path, f"Doe/{path.name}")
    (tmp_path / "Jane.tar.gz").write_bytes(b"\x1f\x8b of no use")
    out = tmp_path / "out"
    given = (tmp_path / "Doe^Jane", tmp_path / "Doe_Jane.zip", tmp_path / "Jane.tar.gz")
    done = hz_run("--prepare", *given, "--out", out)
    assert done.exit_code == 3, done.output
    folder, zipped, damaged = scans_of(out)
    for scan in (folder, zipped):
        assert scan["input"].startswith("sub-") and scan["input"].endswith("_T1w.nii.gz")
        assert [g["gate"] for g in scan["gates"] if not g["passed"]] == ["slice thickness", "field of view"]
        assert scan["sha256"] is None or len(scan["sha256"]) == 64
    assert folder["name"] != zipped["name"]
    assert damaged["input"] == "dicom-0003-1" and "damaged" in damaged["reason"]
    written = b"".join(p.read_bytes() + p.name.encode() for p in out.rglob("*") if p.is_file())
    assert b"Doe" not in written and b"Jane" not in written  # the screen says what failed, no file does
    assert "dicom-0003-1 (of Jane.tar.gz)  failed" in done.stderr and "(of Doe_Jane.zip)" in done.stderr
    assert str(tmp_path).encode() not in written
    assert not list((tmp_path / "tmp").iterdir())


def test_a_study_without_a_head_is_a_row(tmp_path: Path) -> None:
    for package in DICOM:
        pytest.importorskip(package)
    write_series(tmp_path / "in")
    write_other(tmp_path / "in", 2, StudyInstanceUID="2.25.8", SeriesDescription="t2_tse")
    (tmp_path / "made").mkdir()
    found = collect([tmp_path / "in"], tmp_path / "out", DicomScans(tmp_path / "made")).scans
    assert [scan.fault is None for scan in found] == [True, False]
    assert read_volume(found[0].path).shape
    assert "without a T1-weighted head" in str(found[1].fault)


def test_a_head_that_may_be_a_slice_short_is_refused(tmp_path: Path) -> None:
    """An outer image that cannot be read leaves no gap. Among several studies it may be anybody's."""
    for package in DICOM:
        pytest.importorskip(package)
    first = write_series(tmp_path / "in")[0]
    (tmp_path / "in" / "outer").write_bytes(first.read_bytes()[:300])
    (tmp_path / "made").mkdir()
    taken = DicomScans(tmp_path / "made")
    (scan,) = collect([tmp_path / "in"], tmp_path / "out", taken).scans
    assert "cannot be read: it ends within its header" in str(scan.fault)
    write_other(tmp_path / "in", 2, StudyInstanceUID="2.25.8")
    found = collect([tmp_path / "in"], tmp_path / "out", taken)
    assert [scan.fault for scan in found.scans] == [None, None]
    assert "cannot be read: it ends within its header" in found.notes[0].text


def test_a_folder_of_scans_is_searched_for_scans(tmp_path: Path) -> None:
    """DICOM that lies beside them is left alone, and nothing is DICOM where it is not asked for."""
    for package in DICOM:
        pytest.importorskip(package)
    write_series(tmp_path / "in")
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "made").mkdir()
    found = collect([tmp_path / "in"], tmp_path / "out", DicomScans(tmp_path / "made")).scans
    assert [one.path for one in found] == [scan]
    assert not list((tmp_path / "made").iterdir())


def test_dicom_without_its_packages_says_what_to_install(
    hz_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pydicom")
    write_series(tmp_path / "in")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in DICOM else real(n, *a))
    done = hz_run("--prepare", tmp_path / "in", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "needs pydicom, dcm2niix" in done.stderr and "hz-mri[dicom]" in done.stderr
