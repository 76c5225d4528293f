"""Conversion to NIfTI: the right voxels at the right place, and nobody's name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("dcm2niix", reason="needs the extra dicom")

import pydicom
from click.testing import CliRunner

import small_dicom as small
from hz_cli.dicom import dicom
from hz_runtime.dicom.convert import convert, output_name, source_of
from hz_runtime.dicom.deidentify import pseudonym
from hz_runtime.dicom.intake import dicom_files
from hz_runtime.dicom.selection import choose
from hz_runtime.dicom.series import Series, find_series
from hz_runtime.errors import HzError, UnreadableScan
from hz_runtime.io.contrast_agent import contrast_flags


def chosen(folder: Path) -> Series:
    return choose(find_series(sorted(p for p in folder.rglob("*") if p.is_file())))


def check_against_files(volume: Path, files: list[Path], scaled: bool = True) -> None:
    """Every pixel of every file lies, with its value, where PS3.3 C.7.6.2.1.1 puts it."""
    image = nib.load(volume)
    data, back = np.asanyarray(image.dataobj), np.linalg.inv(image.affine)
    for path in files:
        source = pydicom.dcmread(path)
        orientation = np.array(source.ImageOrientationPatient, float).reshape(2, 3)
        down, across = np.array(source.PixelSpacing, float)
        rows, columns = np.mgrid[: source.Rows, : source.Columns]
        lps = np.array(source.ImagePositionPatient, float)[:, None, None]
        lps = (
            lps
            + orientation[0][:, None, None] * across * columns
            + orientation[1][:, None, None] * down * rows
        )
        ras = lps * np.array([-1, -1, 1])[:, None, None]
        index = np.tensordot(back[:3, :3], ras, 1) + back[:3, 3][:, None, None]
        assert np.abs(index - np.rint(index)).max() < 0.02  # of a voxel: positions are text, affines float32
        i, j, k = np.rint(index).astype(int)
        stored = np.frombuffer(source.PixelData, "<i2" if source.PixelRepresentation else "<u2")
        value = stored.reshape(source.Rows, source.Columns)
        if scaled:
            assert np.array_equal(data[i, j, k], value)
        else:
            assert np.corrcoef(data[i, j, k].ravel(), value.ravel())[0, 1] > 0.999999 or value.max() == 0


def test_voxels_and_affine(tmp_path: Path) -> None:
    files = small.write_series(tmp_path / "in")
    written = convert(chosen(tmp_path / "in"), tmp_path / "out")
    check_against_files(written.volume, files)
    assert written.volume.name == f"sub-{pseudonym(small.SERIES_UID)}_T1w.nii.gz"
    facts = json.loads(written.sidecar.read_text())
    assert (facts["RepetitionTime"], facts["EchoTime"], facts["InversionTime"]) == (2.3, 0.00298, 0.9)
    assert (facts["Manufacturer"], facts["ManufacturersModelName"]) == ("Siemens", "Prisma_fit")
    before = written.volume.read_bytes()
    assert convert(chosen(tmp_path / "in"), tmp_path / "out").volume.read_bytes() == before


def test_the_sidecar_says_that_there_was_a_contrast_agent_and_not_which(tmp_path: Path) -> None:
    small.write_series(tmp_path / "a", ContrastBolusAgent="Gadovist of Ms X")
    written = convert(chosen(tmp_path / "a"), tmp_path / "out")
    assert "contrast agent" in "".join(contrast_flags(written.volume))
    assert "Gadovist" not in written.sidecar.read_text()


def test_a_multi_frame_file_converts_alike(tmp_path: Path) -> None:
    small.write_series(tmp_path / "a")
    small.write_enhanced(tmp_path / "b" / "one.dcm")
    one, other = (nib.load(convert(chosen(tmp_path / n), tmp_path / "out" / n).volume) for n in "ab")
    assert np.allclose(one.affine, other.affine, atol=1e-3)
    assert np.array_equal(np.asanyarray(one.dataobj), np.asanyarray(other.dataobj))


def test_slope_and_intercept_survive(tmp_path: Path) -> None:
    small.write_series(tmp_path / "in", RescaleSlope="0.37", RescaleIntercept="-12.5", RescaleType="US")
    image = nib.load(convert(chosen(tmp_path / "in"), tmp_path / "out").volume)
    values = np.sort(image.get_fdata().ravel())
    assert np.allclose(values, np.sort(small.pixels().ravel()) * 0.37 - 12.5, rtol=1e-6)


def test_a_geometry_that_dcm2niix_sees_otherwise_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    small.write_series(tmp_path / "in")
    series = chosen(tmp_path / "in")
    moved = series.placed().copy()
    moved[0, 3] += 1.0
    with pytest.raises(UnreadableScan, match=r"disagree about where it lies \(by 1 mm"):
        convert(replace(series, affine=moved), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_names_and_the_way_back(tmp_path: Path) -> None:
    small.write_series(tmp_path)
    series = chosen(tmp_path)
    assert output_name(series, "secret") != output_name(series)
    for end in ("_T1w", "_desc-harmonized_T1w", ""):
        stem = output_name(series, "secret").removesuffix("_T1w") + end
        assert source_of([series], stem, "secret") is series
        assert source_of([series], stem) is None
        assert source_of([series], f"0001_{stem}", "secret") is series  # as hz-run tells two apart


def test_the_last_digits_in_a_name_count(tmp_path: Path) -> None:
    small.write_series(tmp_path, PatientID="0123456789ab")
    small.write_other(tmp_path, 7)
    one, other = find_series(sorted(tmp_path.iterdir()))
    first, second = pseudonym(one.uid), pseudonym(other.uid)
    for stem, wanted in (
        (f"sub-0123456789ab_ses-{first}_T1w", one),  # a PatientID like digits
        (f"sub-{first}_sub-{second}_desc-harmonized_T1w", other),  # a folder named as the other's
        (f"sub-{second}-a1b2c3_desc-harmonized_T1w", other),  # two files that hz-run told apart
        (f"sub-{first}_ses-0123456789ab_T1w", None),
        (f"sub-{first}0_T1w", None),
    ):
        assert source_of((one, other), stem) is wanted


def test_stacks_of_one_series_have_their_own_names(tmp_path: Path) -> None:
    small.write_series(tmp_path)
    small.write_other(tmp_path, 5, SeriesInstanceUID=small.SERIES_UID, EchoTime="7")
    stacks = find_series(sorted(tmp_path.iterdir()))
    for one in stacks:
        assert source_of(stacks, output_name(one)) is one
    assert source_of(stacks, f"sub-{pseudonym(small.SERIES_UID)}_T1w") is None


MARK = "ZQXPHI"


def test_the_header_holds_no_text(tmp_path: Path) -> None:
    """That nothing planted comes out of any command is tests/attacks/test_identity.py."""
    small.write_series(tmp_path / "in", PatientName=f"{MARK}^X", StudyDescription=MARK)
    written = convert(chosen(tmp_path / "in"), tmp_path / "out")
    header = gzip.decompress(written.volume.read_bytes())[:352]
    assert [header[a:b].strip(b"\0") for a, b in ((4, 14), (14, 32), (148, 228), (228, 252), (328, 344))] == [
        b"", b"", b"hz", b"", b"",
    ]  # data_type, db_name, descrip, aux_file, intent_name  # fmt: skip


def test_identity_is_kept_on_request(tmp_path: Path) -> None:
    small.write_series(tmp_path / "in", PatientID="JD 77", PatientName=f"{MARK}^X")
    written = convert(chosen(tmp_path / "in"), tmp_path / "out", keep_ids=True, keep_reference=True)
    assert written.volume.name.startswith("sub-JD77_") and written.reference is not None
    assert MARK in written.sidecar.read_text()
    reference = json.loads(written.reference.read_text())
    assert reference["SeriesInstanceUID"] == small.SERIES_UID
    assert reference["SOPInstanceUIDs"] == [f"{small.SERIES_UID}.{n}" for n in range(1, 33)]


def test_messages_about_damaged_files_name_nobody(tmp_path: Path, capfd: Any) -> None:
    files = small.write_series(tmp_path / "JaneDoe", PatientName=f"{MARK}^X")
    for path in files[::2]:
        path.write_bytes(path.read_bytes()[:900])
    result = CliRunner().invoke(dicom, ["convert", str(tmp_path / "JaneDoe"), "--out", str(tmp_path / "out")])
    said = f"{result.output}{result.exception}" + "".join(capfd.readouterr())
    assert result.exit_code != 0 and MARK not in said and "Jane" not in said


@pytest.mark.requirement("bounded-programs")
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("kill -SEGV $$", r"dcm2niix crashed \(signal 11\)"),
        ("kill -KILL $$", r"dcm2niix was ended from outside \(signal 9\)"),
        ("sleep 60", r"dcm2niix took more than 0\.3 s"),
        ("[ $(stat -c %a ..) = 700 ] && rm scan.nii && exit 4", r"could not convert it \(exit 4\)"),
    ],
)
def test_its_death_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str) -> None:
    """Even where it had written a volume before. It works in a folder that nobody else reads."""
    program = tmp_path / "dcm2niix"
    program.write_text(f"#!/bin/sh\n: > scan.nii\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr("dcm2niix.bin", str(program))
    monkeypatch.setattr("hz_runtime.dicom.convert._MAX_SECONDS", 0.3)
    files = small.write_series(tmp_path / "in")
    with pytest.raises(HzError, match=says):
        convert(chosen(files[0].parent), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_real_series(tmp_path: Path, scans: Path) -> None:
    (archive,) = (scans / "dicom").glob("philips*.tar.gz")
    with dicom_files(archive) as files:
        series = choose(find_series(files))
        written = convert(series, tmp_path)
        # Philips' own scaling lies between the stored and the converted values.
        check_against_files(written.volume, list(series.files)[::20], scaled=False)
        head = pydicom.dcmread(files[0], stop_before_pixels=True)
        assert nib.load(written.volume).shape == (170, 256, 256)
    words = [str(head.PatientID), str(head.StudyInstanceUID), str(head.SeriesInstanceUID), head.StudyDate]
    words += [str(head.SeriesDescription), str(head.PatientBirthDate)]
    holds = written.volume.name.encode() + written.sidecar.read_bytes()
    holds += gzip.decompress(written.volume.read_bytes())
    assert not [word for word in words if word.encode() in holds]
