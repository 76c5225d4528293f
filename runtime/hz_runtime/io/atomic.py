"""Files that are either whole or absent, and their hashes.

Every file hz writes goes through `atomic_write_bytes`: a reader, or a run that resumes after a
`kill -9`, never meets half a file. `write_changed` leaves a file alone that holds the same bytes already.
Temporaries are named `.NAME.PID.tmp` beside their target.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hz_runtime.errors import HzError

_TEMPORARY = re.compile(r"^\..+\.(\d+)\.tmp$", re.DOTALL)
_NAME_MAX = 255  # bytes in one file name on every file system hz is likely to meet
_BLOCK = 1 << 20
LEVEL = 3  # of igzip
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of the disk, or of what this user may have of it


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """Lower-case hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Lower-case hexadecimal SHA-256 of the bytes of a file, read in blocks. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def gzipped(pieces: Iterable[bytes | memoryview]) -> bytes:
    """`pieces`, one after the other, as one gzip member without name or time.

    The same bytes for the same input, which a resumed run has to end in: of igzip's levels that is so of 0
    and 3 alone, of which 3 is smaller, by a fifth on scans (benchmarks/gzip_repeat.py).
    """
    from isal import isal_zlib

    squeeze = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, 31)  # 31: in a gzip container
    return b"".join([*map(squeeze.compress, pieces), squeeze.flush()])


def printable(text: str) -> str:
    """Text that fits a table and any encoding: no control characters, no stray bytes."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "?" for c in text)


def shown(path: str | os.PathLike[str]) -> str:
    """The name of a file as messages show it: no folder, and `printable` whatever it contains."""
    return printable(os.path.basename(os.path.normpath(os.fspath(path))))


def temporary_name(path: Path) -> Path:
    """Where this process prepares `path`: in the same folder, so that `os.replace` cannot copy."""
    name = f".{path.name}.{os.getpid()}.tmp"
    if len(os.fsencode(name)) > _NAME_MAX:
        name = f".{sha256_bytes(os.fsencode(path.name))[:16]}.{os.getpid()}.tmp"
    return path.with_name(name)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes | bytearray | memoryview) -> None:
    """Write `data` so that `path` afterwards holds all of it, or what it held before.

    Writes a temporary in the same folder, flushes it to the disk, then renames it over `path`.
    Raises HzError where the folder is missing, full or not writable; no temporary is left behind.
    """
    target = Path(path)
    temporary = temporary_name(target)
    try:
        with _writing(target):
            _write_new(temporary, data)
            os.replace(temporary, target)
            sync_folder(target.parent)
    finally:
        # Also after KeyboardInterrupt; after os.replace there is nothing left to remove.
        with suppress(OSError):
            temporary.unlink()


def write_synced(path: str | os.PathLike[str], data: bytes | bytearray | memoryview) -> None:
    """Write `data` to a file of a private folder, from which it is renamed to where it is read.

    It is flushed to the disk, its name is not: `sync_folder` does that where it is renamed to. Raises HzError
    as `atomic_write_bytes`.
    """
    with _writing(Path(path)):
        _write_new(Path(path), data)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Say what cannot be written, and why."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        if error.errno in DISK_FULL:
            raise HzError(
                f"{shown(target)}: the disk is full ({why}).", "Make room and run the same command again."
            ) from error
        raise HzError(
            f"{shown(target)}: cannot be written ({why}).",
            "Check that the output folder exists and is writable, or name another one.",
        ) from error


def holds(path: str | os.PathLike[str], data: bytes | None) -> bool:
    """Whether a file has exactly these bytes.  data : None: whether there is no such file."""
    if data is None:
        return not os.path.lexists(path)
    try:
        return os.stat(path).st_size == len(data) and Path(path).read_bytes() == data
    except OSError:
        return False


def write_changed(path: str | os.PathLike[str], data: bytes) -> bool:
    """`atomic_write_bytes`, unless the file holds these bytes; returns whether it was written.

    So a run that changes nothing leaves no new time, either. Raises HzError.
    """
    if holds(path, data):
        return False
    atomic_write_bytes(path, data)
    return True


def shared_file(path: Path, data: bytes) -> bool:
    """Write a file that other processes, maybe in other containers, write at the same time, unless it has
    these bytes; returns whether it was written.

    The temporary has a random name: process numbers are equal in containers. Raises HzError.
    """
    if holds(path, data):
        return False
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
        raise HzError(
            f"{shown(path)}: cannot be written ({error.strerror}).", "Check the output folder and its space."
        ) from error
    return True


def _write_new(path: Path, data: bytes | bytearray | memoryview) -> None:
    # O_EXCL after unlink: a symbolic link that somebody left under this name is not followed.
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    with suppress(OSError):  # Windows and some network shares cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep_temporaries(folder: str | os.PathLike[str]) -> int:
    """Remove the temporaries of processes that no longer run on this machine; return how many.

    Does not know about other machines: call it only on a folder no other machine is writing to.
    """
    removed = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.match(entry.name)
            if match and not alive(int(match.group(1))):
                with suppress(OSError):
                    os.unlink(entry.path)
                    removed += 1
    return removed


def alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's process: not ours to judge
    return True
