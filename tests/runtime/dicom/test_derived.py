"""What is written back: the same slices, the same numbers, marked as what it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("dcm2niix", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")

import dcm2niix
import pydicom

import small_dicom as small
from dicom_validator import complaints
from hz_runtime.dicom.convert import convert
from hz_runtime.dicom.derived import Origin, float32_text, new_uid, write_derived
from hz_runtime.dicom.intake import dicom_files
from hz_runtime.dicom.selection import choose, judge
from hz_runtime.dicom.series import Series, find_series
from hz_runtime.dicom.structured_report import PredictedAge, write_report
from hz_runtime.errors import GridMismatch, UsageError
from hz_runtime.io.volume import read_volume, write_volume
from hz_runtime.results.prediction import Prediction

ORIGIN = Origin(
    "1.2", "reference", "sha256:" + "ab" * 32, datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC), ("it lay aslant",)
)


def source(folder: Path) -> Series:
    (series,) = find_series(sorted(p for p in folder.rglob("*") if p.is_file()))
    return series


def harmonized(series: Series, folder: Path, dtype: str = "int16") -> Path:
    """A volume with other values on the grid of the converted series, as hz-run writes it."""
    scan = read_volume(convert(series, folder / "scan").volume)
    data = np.sqrt(scan.data) * 0.0173 + 0.0005 * scan.data  # within 0 and 1, as hz-run writes
    data = data.astype(np.float32)
    write_volume(folder / "h.nii.gz", data, scan.geometry, dtype=dtype)  # type: ignore[arg-type]
    return folder / "h.nii.gz"


def back(folder: Path, out: Path) -> nib.Nifti1Image:
    """What dcm2niix, called directly, makes of the derived series."""
    out.mkdir()
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "x", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.nii")
    return nib.load(path)


def check_same(one: nib.Nifti1Image, other: nib.Nifti1Image) -> None:
    assert np.allclose(one.affine, other.affine, atol=1e-4)
    assert one.header["scl_slope"] == other.header["scl_slope"] or (
        one.dataobj.slope == other.dataobj.slope and one.dataobj.inter == other.dataobj.inter
    )
    assert np.array_equal(one.dataobj.get_unscaled(), other.dataobj.get_unscaled())
    assert np.array_equal(one.get_fdata(), other.get_fdata())


def test_a_round_trip_gives_the_same_voxels_and_affine(tmp_path: Path) -> None:
    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    volume = harmonized(series, tmp_path)
    written = write_derived(volume, series, tmp_path / "dicom", ORIGIN)
    assert len(written) == 32
    image = nib.load(volume)
    assert image.dataobj.slope != 1.0
    check_same(image, back(tmp_path / "dicom", tmp_path / "again"))


@pytest.mark.parametrize("axes", ["LPS", "AIR", "SLP"])
def test_a_reoriented_volume_goes_back_to_the_same_slices(tmp_path: Path, axes: str) -> None:
    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    image = nib.load(convert(series, tmp_path / "scan").volume)
    orientations = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(*orientations))
    assert nib.aff2axcodes(turned.affine) == tuple(axes) != nib.aff2axcodes(image.affine)
    nib.save(turned, tmp_path / "turned.nii.gz")
    planes = write_derived(tmp_path / "turned.nii.gz", series, tmp_path / "out", ORIGIN)
    written = np.stack([np.frombuffer(pydicom.dcmread(p).PixelData, "<i2") for p in planes])
    assert np.array_equal(written.reshape(small.pixels().shape), small.pixels())


def test_pixels_stand_on_the_source_slice(tmp_path: Path) -> None:
    """The converted series itself, written back: pixel for pixel the source's."""
    files = small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    written = write_derived(convert(series, tmp_path / "scan").volume, series, tmp_path / "out", ORIGIN)
    sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, files)}
    assert len(written) == len(files) > 0
    for path in written:
        image = pydicom.dcmread(path)
        (reference,) = image.SourceImageSequence
        origin = sources[reference.ReferencedSOPInstanceUID]
        assert image.PixelData == origin.PixelData
        assert image.ImagePositionPatient == origin.ImagePositionPatient
        assert (image.RescaleSlope, image.RescaleIntercept) == (1, 0)


def test_float_volumes_are_rounded_once(tmp_path: Path) -> None:
    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    volume = harmonized(series, tmp_path, "float32")
    write_derived(volume, series, tmp_path / "dicom", ORIGIN)
    got, wanted = back(tmp_path / "dicom", tmp_path / "again"), nib.load(volume)
    step = float(got.dataobj.slope)
    assert np.abs(got.get_fdata() - wanted.get_fdata()).max() <= step * 0.51


def test_it_says_what_it_is(tmp_path: Path) -> None:
    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    volume = harmonized(series, tmp_path)
    written = write_derived(volume, series, tmp_path / "dicom", ORIGIN, keep_ids=True)
    images = [pydicom.dcmread(p) for p in written]
    first = images[0]
    assert list(first.ImageType) == ["DERIVED", "SECONDARY", "OTHER"] and first.BurnedInAnnotation == "NO"
    assert "Research use only" in first.DerivationDescription and "1.2" in first.DerivationDescription
    assert "research use only" in first.SeriesDescription
    assert "it lay aslant" in first.ImageComments and "Research use only" in first.ImageComments
    assert first.PatientName == "Doe^Jane" and first.StudyInstanceUID == small.STUDY_UID
    assert first.FrameOfReferenceUID == f"{small.STUDY_UID}.9"
    uids = {i.SOPInstanceUID for i in images} | {first.SeriesInstanceUID}
    assert len(uids) == 33 and small.SERIES_UID not in uids and all(u.is_valid for u in uids)
    again = [pydicom.dcmread(p) for p in write_derived(volume, series, tmp_path / "dicom", ORIGIN)]
    assert [i.SOPInstanceUID for i in again] == [i.SOPInstanceUID for i in images]
    assert not judge(source(tmp_path / "dicom")).eligible  # never harmonized a second time by itself


def test_frames_are_referenced(tmp_path: Path) -> None:
    small.write_enhanced(tmp_path / "in" / "one")
    series = source(tmp_path / "in")
    volume = harmonized(series, tmp_path)
    images = [pydicom.dcmread(p) for p in write_derived(volume, series, tmp_path / "dicom", ORIGIN)]
    assert [i.SourceImageSequence[0].ReferencedFrameNumber for i in images] == list(range(32, 0, -1))
    assert np.allclose(source(tmp_path / "dicom").placed(), series.placed(), atol=1e-6)
    write_report(PredictedAge(Prediction(40.0)), series, tmp_path / "dicom", ORIGIN)


def test_another_grid_is_refused(tmp_path: Path) -> None:
    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    image = nib.load(harmonized(series, tmp_path))
    moved = image.affine.copy()
    moved[:3, 3] += 0.5
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), moved), tmp_path / "moved.nii")
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[1:], image.affine), tmp_path / "cut.nii")
    for name in ("moved.nii", "cut.nii"):
        with pytest.raises(GridMismatch, match="does not lie on the voxels") as caught:
            write_derived(tmp_path / name, series, tmp_path / "new" / "dicom", ORIGIN)
        assert caught.value.exit_code == 2  # the user named another volume
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [1.0, 0.0, 0.1, 1e-20, -3.4028235e38, 133.88156, 1 / 3, -1.17549435e-38])
def test_slopes_are_exact_in_sixteen_characters(value: float) -> None:
    text = float32_text(float(np.float32(value)))
    assert len(text) <= 16 and np.float32(text) == np.float32(value)


def test_uids_have_the_form_of_a_uuid() -> None:
    uid = new_uid("a", 1)
    assert uid == new_uid("a", 1) != new_uid("a", 2)
    number = int(uid.removeprefix("2.25."))
    assert (number >> 76) & 0xF == 8 and (number >> 62) & 0b11 == 0b10 and len(uid) <= 64


def test_the_report_holds_the_ages(tmp_path: Path) -> None:
    small.write_series(tmp_path / "in")
    age = PredictedAge(Prediction(41.237, 43.5, (35.0, 52.0)), 0.9, "onnxruntime")
    path = write_report(age, source(tmp_path / "in"), tmp_path, ORIGIN)
    report = pydicom.dcmread(path)
    assert report.SOPClassUID.name == "Enhanced SR Storage"
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert report.PreliminaryFlag == "PRELIMINARY"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    numbers, texts = {}, []

    def walk(items: pydicom.Sequence) -> None:
        for item in items:
            if item.ValueType == "NUM":
                value = item.MeasuredValueSequence[0]
                assert value.MeasurementUnitsCodeSequence[0].CodeValue == "a"
                numbers[item.ConceptNameCodeSequence[0].CodeValue] = float(value.NumericValue)
            texts.extend([str(item.get("TextValue", ""))])
            texts.extend(c.CodeMeaning for c in item.get("ConceptCodeSequence", ()))
            walk(item.get("ContentSequence", ()))

    walk(report.ContentSequence)
    assert numbers == {
        "brain-age": 41.24, "brain-age-corr": 43.5, "brain-age-low": 35.0, "brain-age-high": 52.0
    }  # fmt: skip
    assert any("hz brain age" in t for t in texts) and any("Research use only" in t for t in texts)
    assert any("ab" * 32 in t for t in texts) and any("it lay aslant" in t for t in texts)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == small.STUDY_UID
    assert len(study.ReferencedSeriesSequence[0].ReferencedSOPSequence) == 32
    with pytest.raises(UsageError, match="finite"):
        write_report(PredictedAge(Prediction(float("nan"))), source(tmp_path / "in"), tmp_path, ORIGIN)


@pytest.mark.parametrize("keep_ids", [False, True])
@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_dciodvfy_finds_no_error(tmp_path: Path, kind: str, keep_ids: bool) -> None:
    if kind == "classic":
        small.write_series(tmp_path / "in")
    else:
        small.write_enhanced(tmp_path / "in" / "one")
    series = source(tmp_path / "in")
    written = write_derived(harmonized(series, tmp_path), series, tmp_path / "dicom", ORIGIN, keep_ids)
    age = PredictedAge(Prediction(41.2, 43.5, (35.0, 52.0)), 0.9)
    report = write_report(age, series, tmp_path / "dicom", ORIGIN, keep_ids)
    assert complaints(written[0]) == [] and complaints(report) == []


def test_a_real_series_goes_there_and_back(tmp_path: Path, scans: Path) -> None:
    (archive,) = (scans / "dicom").glob("philips*.tar.gz")
    with dicom_files(archive) as files:
        series = choose(find_series(files))
        volume = harmonized(series, tmp_path)
        written = write_derived(volume, series, tmp_path / "dicom", ORIGIN)
        report = write_report(PredictedAge(Prediction(41.2)), series, tmp_path / "report", ORIGIN)
    check_same(nib.load(volume), back(tmp_path / "dicom", tmp_path / "again"))
    if shutil.which("dciodvfy"):
        assert complaints(written[7]) == [] and complaints(report) == []


def test_a_disk_that_fills_up_leaves_no_part_of_a_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hz_runtime.dicom import derived
    from hz_runtime.errors import HzError

    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    volume, real = harmonized(series, tmp_path), derived.write_synced

    def full(path: Path, data: bytes) -> None:
        if path.name == "MR_0020.dcm":
            raise HzError("MR_0020.dcm: the disk is full.")
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(derived, "write_synced", full)
        with pytest.raises(HzError, match="the disk is full"):
            write_derived(volume, series, tmp_path / "out", ORIGIN)
    assert not (tmp_path / "out").exists()
    assert len(write_derived(volume, series, tmp_path / "out", ORIGIN)) == 32
    (tmp_path / "out" / "MR_0033.dcm").touch()
    with pytest.raises(UsageError, match=r"another export \(MR_0033"):
        write_derived(volume, series, tmp_path / "out", ORIGIN)


def two_patients(folder: Path) -> tuple[Series, Path, Series, Path]:
    """(series, volume) of two patients on the same grid."""
    small.write_series(folder / "a")
    small.write_other(folder / "b", 9, StudyInstanceUID=f"{small.STUDY_UID}.2", PatientName="Roe^Joe")
    one, other = source(folder / "a"), source(folder / "b")
    return one, harmonized(one, folder / "a" / "n"), other, harmonized(other, folder / "b" / "n")


def test_one_folder_holds_one_patient(tmp_path: Path) -> None:
    one, volume, other, its_volume = two_patients(tmp_path)
    age, out = PredictedAge(Prediction(50.0)), tmp_path / "out"
    for first in ("images", "report"):
        out = tmp_path / first
        if first == "images":
            write_derived(volume, one, out, ORIGIN, keep_ids=True)
        else:
            write_report(age, one, out, ORIGIN, keep_ids=True)
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        with pytest.raises(UsageError, match="another export") as caught:
            write_derived(its_volume, other, out, ORIGIN, keep_ids=True)
        assert "empty folder" in caught.value.remedy
        with pytest.raises(UsageError, match="another export"):
            write_report(age, other, out, ORIGIN, keep_ids=True)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_new_images_take_the_place_of_old_images_and_their_report(tmp_path: Path) -> None:
    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    volume = harmonized(series, tmp_path)
    write_derived(volume, series, tmp_path / "out", ORIGIN)
    write_report(PredictedAge(Prediction(50.0)), series, tmp_path / "out", ORIGIN)
    old = pydicom.dcmread(tmp_path / "out" / "MR_0001.dcm").SeriesInstanceUID
    later = Origin("1.3", created=datetime(2026, 3, 4, tzinfo=UTC))
    write_derived(volume, series, tmp_path / "out", later)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"MR_{n:04}.dcm" for n in range(1, 33)]
    uids = {pydicom.dcmread(p).SeriesInstanceUID for p in (tmp_path / "out").iterdir()}
    assert len(uids) == 1 and old not in uids


def test_images_that_cannot_be_written_leave_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hz_runtime.dicom import derived
    from hz_runtime.errors import HzError

    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    volume = harmonized(series, tmp_path)
    write_derived(volume, series, tmp_path / "out", ORIGIN)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def full(*_: object) -> None:
        raise HzError("the disk is full.")

    monkeypatch.setattr(derived, "write_synced", full)
    with pytest.raises(HzError, match="disk is full"):
        write_derived(volume, series, tmp_path / "out", Origin("1.3"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hz_runtime.errors import HzError

    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    volume, real = harmonized(series, tmp_path), os.replace

    def refuse(old: Path, new: Path) -> None:
        if new.parent == tmp_path / "out":
            raise PermissionError(13, "Permission denied", str(tmp_path))
        real(old, new)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(HzError, match="the output folder cannot be written") as caught:
        write_derived(volume, series, tmp_path / "out", ORIGIN)
    assert str(tmp_path) not in str(caught.value) and not (tmp_path / "out").exists()


def test_what_a_source_says_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A series number that is none, which pydicom would quote."""
    for path in small.write_series(tmp_path / "in"):
        data = path.read_bytes()
        at = data.index(b"\x20\x00\x11\x00IS")
        path.write_bytes(data[: at + 8] + b"JD" + data[at + 10 :])
    series = source(tmp_path / "in")
    volume = harmonized(series, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_derived(volume, series, tmp_path / "out", ORIGIN)
        write_report(PredictedAge(Prediction(50.0)), series, tmp_path / "out", ORIGIN)
    said = "".join(capfd.readouterr()) + "".join(str(w.message) for w in caught)
    assert "JD" not in said


def uids(folder: Path) -> list[str]:
    """Series and instances of the files of an export."""
    found = [pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(folder.glob("*.dcm"))]
    return [uid for data in found for uid in (data.SeriesInstanceUID, data.SOPInstanceUID)]


def test_the_same_result_has_the_same_uids_at_any_time(tmp_path: Path) -> None:
    """An archive must know a repeat, also of another engine's rounding; anything else is another object."""
    small.write_series(tmp_path / "in")
    series = source(tmp_path / "in")
    volume = harmonized(series, tmp_path)

    def made(name: str, origin: Origin, age: float = 50.0) -> list[str]:
        write_derived(volume, series, tmp_path / name, origin)
        write_report(PredictedAge(Prediction(age)), series, tmp_path / name, origin)
        return uids(tmp_path / name)

    first = made("a", ORIGIN)
    assert made("b", replace(ORIGIN, created=datetime(2027, 1, 1, tzinfo=UTC)), age=50.0001) == first
    for name, change in {"c": {"version": "1.3"}, "d": {"bundle_id": "other"}, "e": {"options": "o"}}.items():
        assert not set(first) & set(made(name, replace(ORIGIN, **change)))
    half = replace(series, slices=series.slices[:16])
    assert (
        ORIGIN.key(half)
        != ORIGIN.key(series)
        == ORIGIN.key(replace(series, slices=tuple(reversed(series.slices))))
    )


def test_the_time_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert Origin("1").created == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    assert abs((Origin("1").created - datetime.now(UTC)).total_seconds()) < 60
