"""hz-dicom as a user calls it."""

from __future__ import annotations

import json
import signal
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import small_dicom as small
from help_pages import help_of
from hz_cli.dicom import dicom
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import HzError, UnreadableScan, UsageError
from hz_runtime.results.prediction import Prediction
from hz_runtime.results.record import Record
from processes import started, until


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
    assert "hz-run --prepare scans" in text  # what convert writes has its skull on
    for command in ("list", "convert", "export"):
        assert not help_of("dicom", command)[1]


def test_a_series_that_may_be_a_slice_short_is_not_converted(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    pytest.importorskip("dcm2niix", reason="needs the extra dicom")
    first = small.write_series(tmp_path / "in")[0]
    (tmp_path / "in" / "outer").write_bytes(first.read_bytes()[:300])
    command = ["convert", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(dicom, command)
    assert result.exit_code == 3 and "error: file" in result.output and not (tmp_path / "out").exists()
    assert "32 x 32 x 32" in run("list", tmp_path / "in")
    assert "cannot be read" in run(*command, "--series", 1)  # who names it has looked


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
    for number, choice in enumerate((("--salt", "s"), ("--reference", reference), ("--series", 2))):
        out = tmp_path / f"back{number}"
        assert "32 images on series 2, SR_age.dcm" in run(
            "export", volume, "--source", exam, "--out", out, "--keep-ids", *choice
        )
        assert len(list(out.glob("MR_*.dcm"))) == 32
        comments = pydicom.dcmread(out / "MR_0001.dcm").ImageComments
        assert flags and all(flag in comments for flag in flags)
        report = pydicom.dcmread(out / "SR_age.dcm")
        assert report.VerificationFlag == "UNVERIFIED" and report.PatientName == "Doe^Jane"
    with pytest.raises(UsageError, match="no series of the source has the digits"):
        run("export", volume, "--source", exam, "--out", tmp_path / "none")  # the salt is forgotten
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with an MPRAGE each of Jane Doe (P1) and of Joe Roe (P2), on the same grid."""
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    pytest.importorskip("dcm2niix", reason="needs the extra dicom")
    folder = tmp_path_factory.mktemp("patients")
    small.write_series(folder / "a")
    small.write_other(
        folder / "b", 9, StudyInstanceUID=f"{small.STUDY_UID}.2", PatientName="Roe^Joe", PatientID="P2"
    )
    return folder


def result(volume: Path, name: str, age: float | None = None) -> Path:
    """A converted volume under a result's name, with the record that hz-run leaves beside it."""
    made = volume.with_name(f"{name}_desc-harmonized_T1w.nii.gz")
    volume.rename(made)
    record = Record("", "", "", "ok", (), Prediction(age), {})
    made.with_name(made.name[:-7] + ".json").write_text(json.dumps({"hz": record.to_dict()}))
    return made


@pytest.mark.made_up_results
@pytest.mark.parametrize("before", ["", "0001_"])
@pytest.mark.parametrize("keep_ids", [False, True])
def test_a_result_is_filed_under_its_own_patient(
    patients: Path, tmp_path: Path, keep_ids: bool, before: str
) -> None:
    import pydicom

    run("convert", patients / "b", "--out", tmp_path, *(["--keep-ids"] if keep_ids else []))
    (volume,) = tmp_path.glob("*_T1w.nii.gz")
    made = result(volume, before + volume.name.removesuffix("_T1w.nii.gz"))
    run("export", made, "--source", patients, "--out", tmp_path / "back", "--keep-ids")
    image = pydicom.dcmread(tmp_path / "back" / "MR_0001.dcm")
    assert (image.PatientName, image.PatientID) == ("Roe^Joe", "P2")


@pytest.mark.made_up_results
def test_no_patient_is_guessed(patients: Path, tmp_path: Path) -> None:
    run("convert", patients / "b", "--out", tmp_path)
    (volume,) = tmp_path.glob("*_T1w.nii.gz")
    for name, source, why in (
        ("sub-0123456789ab", patients, "digits in the volume's name"),
        ("sub-0123456789ab", patients / "a", "digits in the volume's name"),
        ("sub-P1_ses-0123456789ab", patients / "a", "digits in the volume's name"),
        ("Joe", patients, "several series of the source qualify"),
    ):
        volume = result(volume, name)
        with pytest.raises(UsageError, match=why) as caught:
            run("export", volume, "--source", source, "--out", tmp_path / "back", "--keep-ids")
        assert "--series N" in caught.value.remedy
    assert not (tmp_path / "back").exists()
    said = run("export", volume, "--source", patients / "b", "--out", tmp_path / "back")
    assert "32 images on series 1" in said  # the only one there is


@pytest.mark.made_up_results
def test_an_export_that_fails_leaves_the_earlier_one(
    patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    from hz_runtime.dicom import export as exports

    run("convert", patients / "b", "--out", tmp_path)
    (volume,) = tmp_path.glob("*_T1w.nii.gz")
    made = result(volume, "Joe", age=50.0)
    export = ("export", made, "--source", patients / "b", "--out", tmp_path / "back")
    run(*export)

    def full(*_: object) -> None:
        raise HzError("SR_age.dcm: the disk is full.")

    before = {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(exports, "write_synced", full)
        with pytest.raises(HzError, match="disk is full"):
            run(*export)
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == before
    assert "SR_age.dcm" in before and len(before) == 33
    result(made, "Joe")  # now without an age
    assert "no report" in run(*export)
    assert len(list((tmp_path / "back").iterdir())) == 32


@pytest.mark.made_up_results
def test_export_names_its_patient_by_the_salt(patients: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    import hashlib

    import pydicom

    run("convert", patients / "a", "--out", tmp_path, "--salt", "secret")
    (volume,) = tmp_path.glob("*_T1w.nii.gz")
    made = result(volume, volume.name.removesuffix("_T1w.nii.gz"), age=50.0)
    run("export", made, "--source", patients, "--out", tmp_path / "back", "--salt", "secret")
    digits = hashlib.sha256(f"secret\0{small.SERIES_UID}".encode()).hexdigest()[:12]
    for name in ("MR_0001.dcm", "SR_age.dcm"):
        data = pydicom.dcmread(tmp_path / "back" / name)
        assert data.PatientID == data.PatientName == f"sub-{digits}"


SLOW = """#!/bin/sh
touch '{begun}'
exec sleep 600
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_patient_in_the_temporary_folder(
    exam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    package, temporary, begun = tmp_path / "path" / "dcm2niix", tmp_path / "tmp", tmp_path / "begun"
    package.mkdir(parents=True)
    temporary.mkdir()
    program = package / "program"
    program.write_text(SLOW.format(begun=begun))
    program.chmod(0o755)
    (package / "__init__.py").write_text(f"bin, __version__ = {str(program)!r}, '0'\n")
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = signal.signal(number, signal.SIG_DFL)  # what is ignored here, as under nohup, stays so there
    try:
        process = started("dicom", "convert", exam, "--out", tmp_path / "out", path=(package.parent,))
    finally:
        signal.signal(number, before)
    try:
        until(begun.exists, process)
        assert len(list(temporary.glob("hz-dicom-*/*"))) > 60  # unpacked, with names
        process.send_signal(number)
        said, told = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 128 + number and "Traceback" not in said + told
    assert not list(temporary.iterdir())


def test_export_wants_a_result_of_hz_run(exam: Path, tmp_path: Path) -> None:
    run("convert", exam, "--out", tmp_path)
    (volume,) = tmp_path.glob("*.nii.gz")
    with pytest.raises(UsageError, match="not a record that hz-run wrote"):
        run("export", volume, "--source", exam, "--out", tmp_path / "back")
    with pytest.raises(UnreadableScan, match="cannot be opened"):
        run("convert", tmp_path / "Doe", "--out", tmp_path)
