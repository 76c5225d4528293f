"""hz-dicom as a user calls it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import small_dicom as small
from help_pages import help_of
from hz_cli.dicom import dicom
from hz_runtime.bundle import load_bundle
from hz_runtime.errors import UnreadableScan, UsageError
from hz_runtime.pipeline import RunOptions, run_batch


def run(*arguments: object) -> str:
    """Output of an hz-dicom command that succeeds; other errors than click's are raised."""
    result = CliRunner().invoke(dicom, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .zip with an MPRAGE, a T2 and a text file."""
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    pytest.importorskip("dcm2niix", reason="needs the extra dicom")
    folder = tmp_path_factory.mktemp("exam")
    files = small.write_series(folder / "in" / "Doe^Jane")
    files += small.write_other(folder / "in", 2, SeriesDescription="t2_tse Doe")
    with zipfile.ZipFile(folder / "exam.zip", "w") as archive:
        archive.writestr("README", "not DICOM")
        for path in files:
            archive.write(path, path.relative_to(folder / "in"))
    return folder / "exam.zip"


def test_help_is_quick() -> None:
    text, imported = help_of("dicom")
    assert "hz-dicom list" in text and not imported
    for command in ("list", "convert", "export"):
        assert not help_of("dicom", command)[1]


def test_list(exam: Path) -> None:
    lines = run("list", exam).splitlines()
    assert len(lines) == 3 and "Doe" not in "".join(lines)
    assert lines[1].startswith(" 1") and lines[1].endswith("not T1-weighted by its sequence")
    assert lines[2].startswith("*2") and "32 x 32 x 32" in lines[2] and "2300/2.98/900" in lines[2]
    assert "t2_tse Doe" in run("list", "--keep-ids", exam)


def test_convert_names_by_salt(exam: Path, tmp_path: Path) -> None:
    run("convert", exam, "--out", tmp_path)
    run("convert", exam, "--out", tmp_path, "--salt", "secret")
    run("convert", exam, "--out", tmp_path, "--series", 1)
    names = sorted(p.name for p in tmp_path.glob("*.nii.gz"))
    assert len({n.split("_")[0] for n in names}) == 3
    assert sum(n.endswith("_MR.nii.gz") for n in names) == 1
    output = run("convert", exam, "--out", tmp_path, "--reference")
    assert "identify the patient" in output and list(tmp_path.glob("*_source.json"))


@pytest.mark.usefixtures("exam")  # skips without the extra
def test_every_study_is_converted(tmp_path: Path) -> None:
    small.write_series(tmp_path / "in" / "a")
    small.write_other(tmp_path / "in" / "b", 3, StudyInstanceUID=f"{small.STUDY_UID}.3")
    assert run("list", tmp_path / "in").count("*") == 2
    run("convert", tmp_path / "in", "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*_T1w.nii.gz"))) == 2
    small.write_other(tmp_path / "in" / "c", 4, StudyInstanceUID=f"{small.STUDY_UID}.4", Modality="CT")
    result = CliRunner().invoke(dicom, ["convert", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 3 and "1 study has no T1-weighted head" in result.output


def test_from_dicom_to_dicom(exam: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    """list, convert, hz-run and export, one after the other."""
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    import pydicom

    run("convert", exam, "--out", tmp_path / "scans", "--salt", "s", "--reference")
    scans = list((tmp_path / "scans").glob("*_T1w.nii.gz"))
    assert run_batch(scans, load_bundle(tiny_bundle), tmp_path / "out", RunOptions()).exit_code == 0
    (volume,) = (tmp_path / "out").glob("*_desc-harmonized_T1w.nii.gz")
    flags = json.loads(volume.with_name(volume.name[:-7] + ".json").read_text())["hz"]["flags"]
    (reference,) = (tmp_path / "scans").glob("*_source.json")
    for number, choice in enumerate((("--salt", "s"), ("--reference", reference), ("--series", 2), ())):
        out = tmp_path / f"back{number}"
        assert "32 images on series 2, SR_age.dcm" in run(
            "export", volume, "--source", exam, "--out", out, "--keep-ids", *choice
        )
        assert len(list(out.glob("MR_*.dcm"))) == 32
        comments = pydicom.dcmread(out / "MR_0001.dcm").ImageComments
        assert flags and all(flag in comments for flag in flags)
        report = pydicom.dcmread(out / "SR_age.dcm")
        assert report.VerificationFlag == "UNVERIFIED" and report.PatientName == "Doe^Jane"


def test_export_wants_a_result_of_hz_run(exam: Path, tmp_path: Path) -> None:
    run("convert", exam, "--out", tmp_path)
    (volume,) = tmp_path.glob("*.nii.gz")
    with pytest.raises(UsageError, match="not a record that hz-run wrote"):
        run("export", volume, "--source", exam, "--out", tmp_path / "back")
    with pytest.raises(UnreadableScan, match="cannot be opened"):
        run("convert", tmp_path / "Doe", "--out", tmp_path)
