"""Folders and archives of strangers."""

from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

import small_dicom as small
from closed_folders import close
from hz_runtime.dicom.intake import IntakeLimits, dicom_files
from hz_runtime.dicom.scans import dicom_scans
from hz_runtime.errors import HzError, ScanError, UnreadableScan, UnsupportedScan

DICOM = bytes(128) + b"DICM" + b"content"


def tar(path: Path, members: dict[str, bytes], links: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


MEMBERS = {"a/1": DICOM, "../../escaped": DICOM, "/absolute": DICOM, "readme": b"no", "Jane Doe/1": DICOM}


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar", "x.zip", "no-suffix.gz"])
def test_archives_give_their_dicom_files_under_neutral_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    path = folder / name
    made = zipped(path, MEMBERS) if name.endswith("zip") else tar(path, MEMBERS, links=("link", "a/link"))
    with dicom_files(made) as files:
        assert [f.read_bytes() for f in files] == [DICOM] * 4
        assert [f.name for f in files] == ["000001", "000002", "000003", "000004"]
        kept = files[0].parent
    assert not kept.exists()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [made]


def test_folders_are_searched_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "x").write_bytes(DICOM)
    (tmp_path / "elsewhere").write_bytes(DICOM)
    os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "link")
    os.mkfifo(tmp_path / "in" / "pipe")
    with dicom_files(tmp_path / "in") as files:
        assert [f.name for f in files] == ["x"]
    with dicom_files(tmp_path / "elsewhere") as files:
        assert [f.name for f in files] == ["elsewhere"]


SMALL = IntakeLimits(max_bytes=3 << 20, max_file_bytes=2 << 20, max_files=5, max_directory_bytes=2 << 20)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip"])
@pytest.mark.parametrize(
    "members",
    [
        {"bomb": DICOM + bytes(8 << 20)},  # one large file
        {str(n): DICOM + bytes(1 << 20) for n in range(4)},  # together
        {str(n): b"" for n in range(9)},  # many
    ],
)
def test_bombs_are_refused(tmp_path: Path, name: str, members: dict[str, bytes]) -> None:
    made = (zipped if name.endswith("zip") else tar)(tmp_path / name, members)
    with pytest.raises(UnreadableScan, match="the input holds"), dicom_files(made, SMALL):
        pass


def test_a_bomb_that_is_not_kept_is_bounded_too(tmp_path: Path) -> None:
    made = tar(tmp_path / "x.tar.gz", {"zeros": bytes(16 << 20), "one": DICOM})
    with pytest.raises(UnreadableScan, match="more than"), dicom_files(made, SMALL):
        pass


def test_a_pax_record_of_absurd_size(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(1 << 20)))
    with pytest.raises(ScanError), dicom_files(tmp_path / "x.tar.gz", SMALL):
        pass


def test_header_upon_header(tmp_path: Path) -> None:
    """Global pax records are kept by tarfile for as long as the archive is open."""
    record = b"hdrcharset=" + b"x" * 1000 + b"\n"
    record = str(len(record) + 5).encode() + b" " + record
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XGLTYPE, len(record)
    block = info.tobuf() + record + bytes(-len(record) % 512)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(block * 5000))
    with pytest.raises(ScanError), dicom_files(tmp_path / "x.tar.gz"):
        pass


def test_a_zip_directory_of_absurd_size(tmp_path: Path) -> None:
    made = zipped(tmp_path / "x.zip", {"a": DICOM})
    data = bytearray(made.read_bytes())
    struct.pack_into("<I", data, data.rfind(b"PK\x05\x06") + 12, 1 << 30)
    made.write_bytes(data)
    with pytest.raises(UnreadableScan, match="table of contents"), dicom_files(made):
        pass


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip"])
def test_damaged_archives(tmp_path: Path, name: str) -> None:
    made = (zipped if name.endswith("zip") else tar)(tmp_path / name, {"a": DICOM + os.urandom(50_000)})
    whole = made.read_bytes()
    for damaged in (whole[:-4], whole[: len(whole) // 2], whole[:30_000] + b"\0\1\2\3" + whole[30_004:]):
        made.write_bytes(damaged)
        with pytest.raises(UnreadableScan, match="damaged"), dicom_files(made):
            pass


def test_no_room_for_temporary_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = zipped(tmp_path / "x.zip", MEMBERS)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(HzError, match="temporary files cannot be written") as caught, dicom_files(made):
        pass
    assert "TMPDIR" in caught.value.remedy and str(tmp_path) not in str(caught.value)
    with pytest.raises(HzError, match="temporary files cannot be written"), dicom_scans():
        pass


def test_one_input_that_finds_no_room_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch: the temporary folder is full for two inputs; for the third there is room again."""
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    pytest.importorskip("dcm2niix", reason="needs the extra dicom")
    small.write_series(tmp_path / "in")
    with dicom_scans() as scans:
        for call, made in (("mkdtemp", "private folder"), ("symlink_to", "a copy of a slice")):
            owner = tempfile if call == "mkdtemp" else Path
            with monkeypatch.context() as patch:
                patch.setattr(owner, call, full)
                patch.setattr(shutil, "copyfile", full)
                ((path, fault),) = scans.take(str(tmp_path / "in"))[0].items()
            assert isinstance(fault, HzError) and "No space left" in str(fault), made
            assert not path.exists()
        ((path, fault),) = scans.take(str(tmp_path / "in"))[0].items()
        assert fault is None and path.is_file()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "Jane_Doe.txt").write_bytes(b"text" * 1000)
    with pytest.raises(UnreadableScan) as caught, dicom_files(tmp_path / "Jane_Doe.txt"):
        pass
    assert "Jane" not in str(caught.value)
    with pytest.raises(UnsupportedScan, match="no DICOM"), dicom_files(tmp_path):
        pass
    with pytest.raises(UnreadableScan, match="cannot be opened"), dicom_files(tmp_path / "none"):
        pass


def test_rare_and_encrypted_zips(tmp_path: Path) -> None:
    made = zipped(tmp_path / "x.zip", {"a": DICOM}, zipfile.ZIP_LZMA)
    with pytest.raises(UnsupportedScan, match="rare method"), dicom_files(made):
        pass
    made = zipped(tmp_path / "y.zip", {"a": DICOM})
    data = bytearray(made.read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1
    made.write_bytes(data)
    with pytest.raises(UnreadableScan, match="encrypted"), dicom_files(made):
        pass


def test_a_folder_that_cannot_be_listed_is_counted_and_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1", "DOE^JOHN/2"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    close(monkeypatch, tmp_path / "DOE^JOHN")
    heard: list[str] = []
    with dicom_files(tmp_path, note=heard.append) as files:
        assert files == [tmp_path / "a" / "1"]
    assert heard == [
        "1 folder of the DICOM input cannot be listed (Permission denied): what is in there is missing"
    ]
