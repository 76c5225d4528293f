"""Conversion to NIfTI: the right voxels at the right place, and nobody's name."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Iterator
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
from hz_runtime.bundle import load_bundle
from hz_runtime.dicom.convert import convert, output_name, source_of
from hz_runtime.dicom.deidentify import pseudonym
from hz_runtime.dicom.intake import dicom_files
from hz_runtime.dicom.selection import choose
from hz_runtime.dicom.series import Series, find_series
from hz_runtime.errors import UnreadableScan
from hz_runtime.pipeline import RunOptions, run_batch


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


MARK = "ZQXPHI"
DATE, TIME = "19471103", "031415.926"
TEXT = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
GROUPS = (0x08, 0x10, 0x18, 0x20, 0x32, 0x38, 0x40)
# CS elements that the rules or dcm2niix act on; one more value is planted behind the true ones.
ACTED_ON = ("ImageType", "ScanningSequence", "SequenceVariant")


def planted() -> dict[str, Any]:
    """A mark in every text element that the dictionary allows at the top of a file."""
    kept = set(dir(small.header(0))) - {"PatientName", "PatientID", "AccessionNumber", "StudyID"}
    kept |= {"BurnedInAnnotation", "LossyImageCompression", "ContrastBolusAgent", "TimezoneOffsetFromUTC"}
    changes: dict[str, Any] = {}
    for tag, (vr, _, _, retired, keyword) in pydicom.datadict.DicomDictionary.items():
        group = tag >> 16
        if (
            not keyword
            or retired
            or keyword in kept
            or group not in (0x08, 0x10, 0x18, 0x20, 0x32, 0x38, 0x40)
        ):
            continue
        if vr in TEXT and not (vr == "CS" and group in (0x18, 0x20)):  # codes there steer conversion
            changes[keyword] = f"{MARK}{vr}"[:16]
        elif vr in ("DA", "DT"):
            changes[keyword] = DATE
    head = small.header(0)
    changes |= {k: [*head.get(k), MARK] for k in ACTED_ON}
    changes |= {
        "SeriesDescription": f"t1 {MARK}",
        "ManufacturerModelName": f"Prisma {MARK}",
        "StudyDate": DATE,
    }
    changes |= {"Manufacturer": f"SIEMENS {MARK}", "PatientAge": "072Y", "PatientComments": f"{MARK} é"}
    changes |= {"ReferringPhysicianName": f"{MARK}^X", "ProtocolName": f"mprage {MARK}", "StudyTime": TIME}
    nested = pydicom.Dataset()
    nested.PatientID, nested.IssuerOfPatientID = f"{MARK}LO", f"{MARK}LO"
    return {**changes, "OtherPatientIDsSequence": [nested]}


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of all below a folder: names, files, and whatever is packed in them."""
    for path in folder.rglob("*"):
        yield path.name, path.name.encode()
        if path.is_file():
            yield from unpacked(path.name, path.read_bytes())


def unpacked(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, data
    if data[:2] == b"\x1f\x8b":
        yield from unpacked(f"{name} inflated", gzip.decompress(data))
    if data[:4] == b"\x89PNG":
        at = 8
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
            assert kind not in (b"zTXt", b"iTXt", b"eXIf"), name
            if kind == b"IDAT":
                yield f"{name} pixels", zlib.decompressobj().decompress(body)
            at += size + 12
    for found in re.findall(rb"base64,([A-Za-z0-9+/=]{40,})", data):
        yield from unpacked(f"{name} embedded", base64.b64decode(found))


def needles(*names: str) -> list[bytes]:
    texts = [MARK, MARK.lower(), DATE, TIME, small.SERIES_UID, small.STUDY_UID, *names]
    return [t.encode(code) for t in texts for code in ("utf-8", "utf-16-le", "utf-16-be")]


def test_no_planted_identity_comes_out(tmp_path: Path, tiny_bundle: Path, capfd: Any) -> None:
    """Search the bytes of every output of list, convert and a whole run behind them."""
    source = tmp_path / "Doe_Jane_19471103"
    files = small.write_series(source / "JaneDoe", name="JaneDoe{:04}.dcm", **planted())
    for path in files[:3]:  # private elements too
        data = pydicom.dcmread(path)
        block = data.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", MARK.encode() * 20)
        data.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x01, "LO", MARK)
        data.save_as(path, enforce_file_format=True)
    assert sum(MARK.encode() in f.read_bytes() for f in files) == 32
    assert files[0].read_bytes().count(MARK.encode()) > 150
    out = tmp_path / "out"
    said = ""
    for command in (["list", source], ["convert", source, "--out", out / "scans"]):
        result = CliRunner().invoke(dicom, [str(a) for a in command], catch_exceptions=False)
        assert result.exit_code == 0
        said += result.output
    (out / "said.txt").write_text(said + "".join(capfd.readouterr()))
    report = run_batch([out / "scans"], load_bundle(tiny_bundle), out / "results", RunOptions())
    assert report.exit_code == 0
    found = dict(contents(out))
    assert {".gz", ".json", ".html", ".tsv"} <= {Path(n).suffix for n in found}
    assert any(n.endswith("inflated") for n in found)
    assert "inversion-prepared" in said
    wrong = [(n, s) for n, data in contents(out) for s in needles("Jane", "Doe_") if s in data]
    assert not wrong
    (volume,) = (out / "scans").glob("*.nii.gz")
    header = gzip.decompress(volume.read_bytes())[:352]
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
    wrong = [(n, w) for n, data in contents(tmp_path) for w in words if w.encode() in data]
    assert not wrong
