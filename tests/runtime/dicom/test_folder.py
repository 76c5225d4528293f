"""DICOM in folders: links, content that was not fetched, archives; what is left out is said by number."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

import small_dicom as small
from hz_runtime.batch.inputs import collect
from hz_runtime.dicom.folder import find_dicom, holds_dicom
from hz_runtime.dicom.intake import dicom_files
from hz_runtime.dicom.scans import DicomScans
from hz_runtime.dicom.selection import choose
from hz_runtime.dicom.series import find_series
from hz_runtime.errors import UnreadableScan, UnsupportedScan, UsageError
from small_scans import write_scan

DICOM = bytes(128) + b"DICM" + b"content"


@pytest.fixture
def annex(tmp_path: Path) -> Path:
    """A data set of three DICOM files that git-annex keeps, the content of one not here."""
    objects = tmp_path / "set" / ".git" / "annex" / "objects"
    objects.mkdir(parents=True)
    (tmp_path / "set" / "ser").mkdir()
    for n in range(3):
        if n < 2:
            (objects / f"MD5E-{n}.dcm").write_bytes(DICOM)
        (tmp_path / "set" / "ser" / f"{n}.dcm").symlink_to(f"../.git/annex/objects/MD5E-{n}.dcm")
    return tmp_path / "set"


def test_content_that_git_annex_keeps_is_read_once(annex: Path) -> None:
    heard: list[str] = []
    found = find_dicom(annex, 100, heard.append)
    assert [path.relative_to(annex).as_posix() for path in found] == ["ser/0.dcm", "ser/1.dcm"]
    assert heard == ["the content of 1 file of the DICOM input was not fetched:  datalad get PATH"]


def test_where_nothing_is_fetched_the_refusal_says_how(annex: Path) -> None:
    for path in (annex / ".git" / "annex" / "objects").iterdir():
        path.unlink()
    assert holds_dicom(annex)
    with pytest.raises(
        UnsupportedScan, match="3 files of the DICOM input was not fetched:  datalad get PATH"
    ):
        find_dicom(annex / "ser", 100, lambda _: None)
    (annex / "exam.tar.gz").symlink_to(".git/annex/objects/MD5E-9.tar.gz")
    with pytest.raises(UnreadableScan, match="not fetched") as unread, dicom_files(annex / "exam.tar.gz"):
        pass
    assert "datalad get PATH" in unread.value.remedy


def test_a_file_that_only_is_named_like_dicom_has_its_place(tmp_path: Path) -> None:
    """What a full disk left empty is an image that is missing; alone it makes no study."""
    (tmp_path / "in").mkdir()
    members = {"1.dcm": DICOM, "2.dcm": b"", "3.IMA": b"torn", "._1.dcm": b"macOS", "x": b""}
    for name, content in members.items():
        (tmp_path / "in" / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted((tmp_path / "in").iterdir()):
            archive.write(path, f"exam/{path.name}")
    for source in (tmp_path / "in", tmp_path / "in.zip"):
        with dicom_files(source) as files:
            assert [path.read_bytes() for path in files] == [DICOM, b"", b"torn"]
    (tmp_path / "in" / "1.dcm").unlink()
    assert not holds_dicom(tmp_path / "in")
    with pytest.raises(UnsupportedScan, match="no DICOM file"), dicom_files(tmp_path / "in"):
        pass


def test_other_links_are_counted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    for place in ("in/x", "other/y"):
        (tmp_path / place).write_bytes(DICOM)
    os.symlink(tmp_path / "other" / "y", tmp_path / "in" / "link")
    os.symlink(tmp_path / "other", tmp_path / "in" / "folder")
    heard: list[str] = []
    assert find_dicom(tmp_path / "in", 100, heard.append) == [tmp_path / "in" / "x"]
    assert heard == ["2 links in the DICOM input not followed, for leading elsewhere"]


def exams(folder: Path) -> Path:
    """A folder with a .zip, a damaged .tar.gz and a .tar of one series each."""
    small.write_series(folder / "a")
    small.write_other(folder / "b", 2, StudyInstanceUID="2.25.7")
    folder = folder / "exams"
    folder.mkdir()
    with zipfile.ZipFile(folder / "Doe.zip", "w") as archive:
        for path in sorted((folder.parent / "a").iterdir()):
            archive.write(path, path.name)
    (folder / "Jane.tar.gz").write_bytes(b"\x1f\x8b of no use")
    with tarfile.open(folder / "Roe.tar", "w") as archive:
        archive.add(folder.parent / "b", "b")
    return folder


@pytest.mark.parametrize("asked", ["exams", "exams/*", "exams/*.[tz]*"])
def test_archives_in_a_folder_are_taken_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    for package in ("pydicom", "dcm2niix"):
        pytest.importorskip(package)
    exams(tmp_path)
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path)
    scans = collect([asked], tmp_path / "out", DicomScans(tmp_path / "made")).scans
    assert [scan.source for scan in scans] == ["exams/Doe.zip", "exams/Jane.tar.gz", "exams/Roe.tar"]
    assert [scan.fault is None for scan in scans] == [True, False, True]
    assert not any("Jane" in scan.label + scan.name + str(scan.fault) for scan in scans)


def test_archives_beside_scans_are_said(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "in" / "sub" / "a.nii.gz")
    (tmp_path / "in" / "Jane.zip").write_bytes(b"PK")
    (tmp_path / "in" / "IM1.dcm").write_bytes(DICOM)
    for converted in (None, DicomScans(tmp_path)):
        found = collect([tmp_path / "in"], tmp_path / "out", converted)
        assert [one.path for one in found.scans] == [scan]
        (note,) = found.notes
        assert "in: 1 archive and 1 DICOM file beside the scans" in note.text and "Jane" not in note.text
        assert "(Jane.zip)" in note.screen and "hz-run --prepare" in note.screen


def test_without_preparing_dicom_leads_to_prepare(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "IM1").write_bytes(DICOM)
    (tmp_path / "e.tar.gz").write_bytes(b"\x1f\x8b")
    for given, what in (("e.tar.gz", "an archive"), ("d/IM1", "a DICOM file")):
        (scan,) = collect([tmp_path / given], tmp_path / "out").scans
        with pytest.raises(UnsupportedScan, match=what) as refused:
            scan.check()
        assert "hz-run --prepare" in refused.value.remedy
    with pytest.raises(UsageError, match="d holds DICOM") as caught:
        collect([tmp_path / "d"], tmp_path / "out")
    assert "hz-run --prepare d" in caught.value.remedy


@pytest.mark.parametrize(
    "skip, twice, fault",
    [
        ((15,), (), "slices are missing or unevenly spaced"),
        ((), (15,), "several images lie at one place"),
    ],
)
def test_a_slice_that_is_missing_or_doubled_is_refused_before_dcm2niix(
    tmp_path: Path, skip: tuple[int, ...], twice: tuple[int, ...], fault: str
) -> None:
    """dcm2niix 1.0.20260724 ends with 0 on both, and writes a squeezed volume beside an interpolated one."""
    pytest.importorskip("pydicom")
    small.write_series(tmp_path / "d", skip=skip)
    for index in twice:
        again = small.header(index, SOPInstanceUID=f"{small.SERIES_UID}.900")
        again.PixelData = small.pixels()[index].astype("<u2").tobytes()
        again["PixelData"].VR = "OW"
        small.save(again, tmp_path / "d" / "again")
    (one,) = find_series(find_dicom(tmp_path / "d", 100, lambda _: None))
    assert fault in one.fault and one.affine is None
    with pytest.raises(UnsupportedScan, match=fault):
        choose([one])
