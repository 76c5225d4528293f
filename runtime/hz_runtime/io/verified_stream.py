"""The bytes of one scan file, inflated as they are needed and proven whole at the end.

gzip is read through isal (igzip), which, unlike usual readers, is made here to refuse a wrong CRC, a cut
trailer and junk after the stream. At most one buffer of compressed bytes is in memory at a time.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from hz_runtime.errors import UnreadableScan
from hz_runtime.io.atomic import shown

_BLOCK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
# A deflate stream cannot expand further (258 bytes from a 2-bit code): zlib's technical notes.
_MAX_EXPANSION = 1032
_COPY = "Copy it again from its source."


class _HashedFile(io.RawIOBase):
    """A binary file that feeds all that is read from it to a SHA-256."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._raw.readinto(buffer)  # type: ignore[attr-defined]
        self.digest.update(memoryview(buffer)[:count])
        return int(count)


class ScanStream:
    """Reads a scan front to back, once; whether it is gzip is told by its first bytes, not its name.

    name : the file's name for messages.  size : bytes on disk.
    Use as a context manager. Every method raises UnreadableScan, and no other error, on a bad file.
    """

    def __init__(self, path: str | os.PathLike[str], max_file_bytes: int) -> None:
        self.name = shown(path)
        raw = self._open(Path(path))
        try:
            self.size = os.fstat(raw.fileno()).st_size
            self._check_size(max_file_bytes)
            self._file = raw
            self._hashed = _HashedFile(raw)
            self.compressed = raw.peek(2)[:2] == _GZIP_MAGIC  # type: ignore[attr-defined]
            self._source = self._inflated() if self.compressed else io.BufferedReader(self._hashed, _BLOCK)
        except OSError as error:
            raw.close()
            raise UnreadableScan(f"{self.name}: cannot be read ({error.strerror}).", _COPY) from error
        except BaseException:
            raw.close()
            raise
        self._pending = memoryview(b"")

    def __enter__(self) -> ScanStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _open(self, path: Path) -> BinaryIO:
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                raise UnreadableScan(f"{self.name}: a folder, not a scan.", "Name the .nii.gz files in it.")
            if not stat.S_ISREG(mode):  # opening a pipe could wait for ever
                raise UnreadableScan(f"{self.name}: not a regular file.", "Copy the scan into a file first.")
            return cast(BinaryIO, open(path, "rb"))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise UnreadableScan(
                f"{self.name}: cannot be opened ({reason}).", "Check the name and your permission to read it."
            ) from error

    def _check_size(self, limit: int) -> None:
        if self.size == 0:
            raise UnreadableScan(f"{self.name}: the file is empty (0 bytes).", _COPY)
        if self.size > limit:
            raise UnreadableScan(
                f"{self.name}: {self.size / 1e6:.0f} MB on disk; the limit is {limit / 1e6:.0f} MB.",
                "Give hz one T1-weighted volume, compressed as .nii.gz.",
            )

    def _inflated(self) -> BinaryIO:
        from isal import igzip

        opened: Callable[..., Any] = igzip.IGzipFile
        return cast(BinaryIO, opened(fileobj=self._hashed, mode="rb"))

    def head(self, count: int) -> bytes:
        """The first `count` bytes, fewer where the content is shorter; `skip` and `fill` see them again."""
        taken = bytearray(count)
        got = self._into(memoryview(taken))
        self._pending = memoryview(bytes(taken[:got]))
        return bytes(self._pending)

    def check_declared(self, count: int) -> None:
        """Refuse, before anything is allocated, a content of `count` bytes that this file cannot hold."""
        most = self.size * _MAX_EXPANSION if self.compressed else self.size
        if count > most:
            raise self._short(count, most)

    def skip(self, count: int) -> None:
        """Read on past `count` bytes."""
        scratch = bytearray(min(count, _BLOCK))
        while count > 0:
            step = min(count, len(scratch))
            self.fill(memoryview(scratch)[:step])
            count -= step

    def fill(self, buffer: memoryview) -> None:
        """Fill all of `buffer` (C-contiguous bytes) with what comes next."""
        held = min(len(buffer), len(self._pending))
        buffer[:held] = self._pending[:held]
        self._pending = self._pending[held:]
        got = held + self._into(buffer[held:])
        if got < len(buffer):
            raise UnreadableScan(
                f"{self.name}: truncated: the content ends before the last voxel its header declares.", _COPY
            )

    def finish(self, footer: int) -> str:
        """Require the end after at most `footer` bytes, gzip CRC and length included; SHA-256 of the file."""
        extra = bytearray(footer + 1)
        count = len(self._pending) + self._into(memoryview(extra))
        if count > footer:
            raise UnreadableScan(
                f"{self.name}: holds more bytes than its header declares.",
                "The header or the file is damaged, or it is a decompression bomb; export the scan again.",
            )
        return self._hashed.digest.hexdigest()

    def _into(self, buffer: memoryview) -> int:
        # Bytes read into buffer; fewer than its length only at the end of the content.
        from isal import igzip_lib

        isal_error = cast(type[Exception], igzip_lib.error)  # its stub declares an instance
        total = 0
        try:
            while total < len(buffer):
                count = self._source.readinto(buffer[total:])  # type: ignore[attr-defined]
                if not count:
                    break
                total += count
        except EOFError as error:
            raise UnreadableScan(
                f"{self.name}: truncated: the gzip stream has no end, or something follows it.", _COPY
            ) from error
        except (OSError, isal_error) as error:  # BadGzipFile is an OSError
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            what = "the gzip stream is damaged" if self.compressed else "cannot be read"
            raise UnreadableScan(f"{self.name}: {what} ({reason}).", _COPY) from error
        return total

    def _short(self, count: int, most: int) -> UnreadableScan:
        holds = "inflate to" if self.compressed else "hold"
        return UnreadableScan(
            f"{self.name}: truncated: its header declares {count} bytes of content; the {self.size} bytes on "
            f"disk {holds} {most} at most.",
            _COPY,
        )
