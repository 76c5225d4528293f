"""Where DICOM comes from: a folder, a .zip or a .tar(.gz), as a list of files to read.

A stranger's archive is unpacked into a private temporary folder under names of hz's own (000001, 000002...),
so that no name in it can lead outside, and no name with a patient in it reaches another file. What it may
hold is bounded before and while it is inflated. Only regular files are kept that begin like DICOM or are
named so.
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from hz_runtime.dicom.folder import HEAD, MOST_FILES, find_dicom, looks_like_dicom, named_like_dicom, too_much
from hz_runtime.errors import HzError, UnreadableScan, UnsupportedScan
from hz_runtime.io.annex import fetch_command, unfetched

_BLOCK = 1 << 20
_GZIP_MAGIC, _ZIP_MAGIC = b"\x1f\x8b", b"PK"
_EOCD, _EOCD64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
# What the standard library raises at a bad archive; NotImplementedError is zipfile's for unknown compression.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error,
    RecursionError,  # tarfile's, at header upon header
)  # fmt: skip
_COPY = "Copy it again from its source."
_ROOM = "Make room for temporary files, or name another place for them:  TMPDIR=FOLDER, before the command."


@dataclass(frozen=True)
class IntakeLimits:
    """How much of a stranger's archive or folder hz is willing to take in.

    max_bytes : inflated, all files together.  max_file_bytes : inflated, one file.  max_files : of any kind.
    max_directory_bytes : a .zip's table of contents; one record of a .tar has at most 1 MB.
    """

    max_bytes: int = 2**32
    max_file_bytes: int = 2**31
    max_files: int = MOST_FILES
    max_directory_bytes: int = 2**26


@contextmanager
def dicom_files(
    source: str | os.PathLike[str],
    limits: IntakeLimits | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[list[Path]]:
    """The DICOM files below a folder or in an archive, for as long as the context lasts.

    Which links in folders are followed is `folder`'s; files that do not begin like DICOM are left out.
    note : called with a line for what is left out of a folder: links, folders that cannot be listed.
    Messages name neither files nor folders. Raises UnreadableScan (missing, not fetched, damaged, encrypted,
    over the limits), UnsupportedScan (no archive and no folder, or no DICOM in it), HzError where the
    temporary folder is full.
    """
    limits = limits or IntakeLimits()
    path = Path(source)
    if unfetched(path):
        raise UnreadableScan(
            "the content of the DICOM input was not fetched.", f"Fetch it first:  {fetch_command('PATH')}"
        )
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UnreadableScan(
            "the DICOM input cannot be opened.", "Check the name and your permission to read it."
        ) from error
    if stat.S_ISDIR(mode):
        yield find_dicom(path, limits.max_files, note)
    elif not stat.S_ISREG(mode):
        raise UnreadableScan("the DICOM input is neither a folder nor a regular file.", "Give a folder.")
    else:
        with private_folder() as folder:
            yield _unpacked(path, folder, limits)


@contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder that only this user can read, as long as the context lasts; it may hold identity.

    Raises HzError where it cannot be made.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="hz-dicom-")
    except OSError as error:
        raise no_room(error) from error
    with made as folder:
        yield Path(folder)


def no_room(error: OSError) -> HzError:
    """What to say where temporary files cannot be written."""
    return HzError(f"temporary files cannot be written ({error.strerror or type(error).__name__}).", _ROOM)


def _unpacked(path: Path, folder: Path, limits: IntakeLimits) -> list[Path]:
    from isal import igzip_lib

    of_streams = (zlib.error, cast(type[Exception], igzip_lib.error))  # its stub declares an instance
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            file.seek(0)
            if looks_like_dicom(head):
                return [path]
            unpacking = _Unpacking(folder, limits)
            if head[:2] == _ZIP_MAGIC:
                _from_zip(file, unpacking)
            else:
                _from_tar(_inflated(file) if head[:2] == _GZIP_MAGIC else file, unpacking)
            return unpacking.some()
    except HzError:
        raise
    except OSError as error:
        if error.errno is None:  # isal's BadGzipFile
            raise _damaged() from error
        raise HzError(f"the archive cannot be unpacked ({error.strerror}).", _ROOM) from error
    except (*_DAMAGED, *of_streams) as error:
        raise _damaged() from error


def _damaged() -> UnreadableScan:
    return UnreadableScan("the archive is damaged, or is neither a .zip nor a .tar.gz.", _COPY)


def _inflated(file: BinaryIO) -> BinaryIO:
    from isal import igzip

    opened = cast(Any, igzip.IGzipFile)
    return cast(BinaryIO, opened(fileobj=file, mode="rb"))


class _Bounded:
    """A stream read forward only, that refuses to give more than the limits allow."""

    def __init__(self, source: BinaryIO, limits: IntakeLimits) -> None:
        self._source, self._limits, self._at = source, limits, 0

    def read(self, count: int = -1) -> bytes:
        # Content comes in blocks; more at once is a record, and tarfile keeps those that are global.
        if count < 0 or count > min(self._limits.max_directory_bytes, _BLOCK):
            raise too_much("a record of absurd size")
        data = self._source.read(count)
        self._at += len(data)
        if self._at > 2 * self._limits.max_bytes:  # content, and padding between files
            raise too_much(f"more than {self._limits.max_bytes / 1e9:.3g} GB")
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or position < self._at:
            raise ValueError("backwards")
        while self._at < position:
            if not self.read(min(_BLOCK, position - self._at)):
                break
        return self._at


class _Unpacking:
    """Counts what is written and gives every file its number for a name."""

    def __init__(self, folder: Path, limits: IntakeLimits) -> None:
        self.limits = limits
        self._files: list[Path] = []
        self._folder, self._left, self._seen, self._any_like = folder, limits.max_bytes, 0, False

    def some(self) -> list[Path]:
        """The files. Raises UnsupportedScan where none begins like DICOM."""
        if not self._any_like:
            raise UnsupportedScan(
                "no DICOM file is in the input.",
                "Give the folder, .zip or .tar.gz that holds the series' slices.",
            )
        return self._files

    def count(self) -> None:
        self._seen += 1
        if self._seen > self.limits.max_files:
            raise too_much(f"more than {self.limits.max_files} files")

    def keep(self, source: IO[bytes], name: str) -> None:
        """Write a member to its own file where it begins like DICOM, or is named so."""
        head = source.read(HEAD)
        like = looks_like_dicom(head)
        if not like and not named_like_dicom(os.path.basename(name)):
            return
        self._any_like |= like
        target = self._folder / f"{len(self._files) + 1:06}"
        size = 0
        with open(target, "xb") as out:
            piece = head
            while piece:
                size += len(piece)
                self._left -= len(piece)
                if size > self.limits.max_file_bytes or self._left < 0:
                    raise too_much(
                        f"more than {self.limits.max_bytes / 1e9:.3g} GB, or a file of more than "
                        f"{self.limits.max_file_bytes / 1e9:.3g} GB"
                    )
                out.write(piece)
                piece = source.read(_BLOCK)
        self._files.append(target)


def _from_tar(file: BinaryIO, unpacking: _Unpacking) -> None:
    bounded = _Bounded(file, unpacking.limits)
    with tarfile.open(fileobj=cast(Any, bounded), mode="r:") as archive:
        while (member := archive.next()) is not None:
            unpacking.count()
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it has met
            if member.isreg() and not member.issparse():
                content = archive.extractfile(member)
                if content is not None:
                    unpacking.keep(content, member.name)
    while bounded.read(_BLOCK):  # to the end, where gzip's checksum is
        pass


def _from_zip(file: BinaryIO, unpacking: _Unpacking) -> None:
    if _directory_bytes(file) > unpacking.limits.max_directory_bytes:
        raise too_much("a table of contents of absurd size")
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            unpacking.count()
            # Not member.is_dir(), which fails for a name without any letter.
            if member.filename.endswith("/") or stat.S_ISLNK(member.external_attr >> 16):
                continue
            if member.flag_bits & 1:
                raise UnreadableScan("the archive is encrypted.", "Unpack it with its password first.")
            # The other methods' readers inflate a whole member at once.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UnsupportedScan("the .zip is compressed by a rare method.", "Unpack it first.")
            with archive.open(member) as content:
                unpacking.keep(content, member.filename)


def _directory_bytes(file: BinaryIO) -> int:
    """Size of a .zip's central directory, as zipfile will believe it (APPNOTE 4.3.14 to 4.3.16)."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - (1 << 16) - 22 - 20)
    file.seek(start)
    tail = file.read()
    file.seek(0)
    at = tail.rfind(_EOCD)
    if at < 0 or at + 22 > len(tail):
        raise zipfile.BadZipFile
    declared = int(struct.unpack_from("<I", tail, at + 12)[0])
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        (position,) = struct.unpack_from("<Q", tail, at - 12)
        file.seek(min(position, size))
        record = file.read(56)
        file.seek(0)
        if len(record) < 56 or record[:4] != _EOCD64:
            raise zipfile.BadZipFile
        declared = max(declared if declared != 0xFFFFFFFF else 0, struct.unpack_from("<Q", record, 40)[0])
    return declared
