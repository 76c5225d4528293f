"""Files that are cut short or damaged are found and named, without their names."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MediaStorageDirectoryStorage,
)

import small_dicom as small
from hz_runtime.dicom.series import find_series
from hz_runtime.dicom.whole_files import Damage, find_whole


def find_damage(files: list[Path]) -> list[Damage]:
    return find_whole(files)[1]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return sorted(small.write_series(tmp_path / "Doe^Jane"))


def compressed(path: Path) -> None:
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.PixelData = encapsulate([b"\xff\x4f" + bytes(600)])
    data["PixelData"].VR = "OB"
    data.save_as(path)


def test_whole_files_are_whole(files: list[Path]) -> None:
    compressed(files[3])
    for path, syntax in ((files[5], ImplicitVRLittleEndian), (files[6], ExplicitVRBigEndian)):
        data = small.header(5)
        data.PixelData = bytes(2048)
        data["PixelData"].VR = "OW"
        data.file_meta = pydicom.dcmread(path).file_meta
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path, enforce_file_format=True)
    assert find_damage(files) == []
    assert find_damage([small.write_enhanced(files[0].parent / "enhanced")]) == []


@pytest.mark.parametrize("before_the_end", [1, 300, 630])
@pytest.mark.parametrize("kind", ["plain", "compressed"])
def test_one_that_is_cut_in_its_pixels_is_named(files: list[Path], kind: str, before_the_end: int) -> None:
    if kind == "compressed":
        compressed(files[7])
    content = files[7].read_bytes()
    image = pydicom.dcmread(files[7]).InstanceNumber
    files[7].write_bytes(content[:-before_the_end])
    (damage,) = find_damage(files)
    assert damage.said.startswith(f"file 8 of 32 in the order of their names (image {image}) is cut short")
    assert damage.uid == small.SERIES_UID and "Doe" not in damage.said


def test_one_that_is_cut_anywhere_is_found(files: list[Path]) -> None:
    content = files[7].read_bytes()
    for size in range(140, len(content), 61):
        files[7].write_bytes(content[:size])
        assert len(find_damage(files[7:8])) == 1, size


def test_what_is_wrong_with_the_header(files: list[Path]) -> None:
    content = files[0].read_bytes()
    files[0].write_bytes(content[:400])
    files[1].write_bytes(content[:200] + bytes(reversed(content[200:])))
    files[2].unlink()
    said = [damage.said for damage in find_damage(files)]
    assert [line[:9] for line in said] == ["file 1 of", "file 2 of", "file 3 of"]
    assert "cannot be opened" in said[2]


def test_an_object_without_pixels_is_no_damage(files: list[Path]) -> None:
    from pydicom.dataset import Dataset

    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "2.25.5"
    report.SeriesInstanceUID = "2.25.6"
    assert find_damage([small.save(report, files[0].parent / "report")]) == []


def test_objects_that_are_no_mr_image_are_no_damage(files: list[Path]) -> None:
    """Spectra have rows and columns and no pixels (PS3.3 C.8.14.4); parametric maps may have float pixels."""
    spectrum = small.header(
        0, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.2", SeriesInstanceUID="2.25.7", Rows=1, Columns=1
    )
    spectrum.SpectroscopyData = bytes(64)
    parametric = small.header(0, SOPClassUID="1.2.840.10008.5.1.4.1.1.30", SeriesInstanceUID="2.25.8")
    parametric.FloatPixelData = bytes(64)
    folder = files[0].parent
    assert find_damage([small.save(spectrum, folder / "a"), small.save(parametric, folder / "b")]) == []


def test_the_table_of_contents_of_a_disc_is_no_damage(files: list[Path]) -> None:
    """A DICOMDIR (PS3.3 F.3.2.2) is of no series, and has no UID of its own but in its file meta."""
    contents = Dataset()
    contents.FileSetID = "DISC"
    contents.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    contents.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    contents.FileSetConsistencyFlag = 0
    contents.DirectoryRecordSequence = []
    contents.file_meta = FileMetaDataset()
    contents.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    contents.file_meta.MediaStorageSOPInstanceUID = "2.25.9"
    contents.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    contents.save_as(files[0].parent / "DICOMDIR", enforce_file_format=True)
    assert find_damage([*files, files[0].parent / "DICOMDIR"]) == []


def test_pixels_that_are_fewer_than_the_header_says(files: list[Path]) -> None:
    data = pydicom.dcmread(files[4])
    data.Rows *= 2
    data.save_as(files[4])
    (damage,) = find_damage(files)
    assert "2048 of 4096 bytes" in damage.said


def test_stacks_are_those_of_find_series(files: list[Path], tmp_path: Path) -> None:
    """Files are parsed once for both; damaged ones, and one that is no image, disturb no stack."""
    files[3].write_bytes(files[3].read_bytes()[:200])
    files.append(small.write_enhanced(tmp_path / "enhanced"))
    (tmp_path / "other").write_bytes(b"no DICOM")
    series, damage = find_whole([*files, tmp_path / "other"])
    expected = find_series([*files, tmp_path / "other"])
    assert [(one.uid, one.shape, one.files) for one in series] == [
        (one.uid, one.shape, one.files) for one in expected
    ]
    assert [one.shape[2] for one in series] == [63] and len(damage) == 2


def test_a_deflated_file_is_neither_inflated_nor_damaged(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PS3.5 A.5 compresses a whole data set: a small file may hold gigabytes, and no scanner writes it."""
    data = pydicom.dcmread(files[0])
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(files[0])
    inflated: list[object] = []
    monkeypatch.setattr(zlib, "decompress", lambda *given: inflated.append(given) or b"")
    series, damage = find_whole(files)
    assert (len(series), damage, inflated) == (1, [], [])
