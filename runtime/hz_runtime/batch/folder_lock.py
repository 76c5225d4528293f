"""The lock that one run holds on its output folder, and what dead runs left half-written there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hz_runtime.errors import UsageError
from hz_runtime.io.annex import fetch_folder_command, unfetched
from hz_runtime.io.atomic import sweep_temporaries

LOCK_NAME = ".hz.lock"  # also marks a folder as one that hz-run wrote: never searched for inputs
_TEMP = re.compile(r"^\..+\.\d+\.tmp$", re.DOTALL)


@contextlib.contextmanager
def locked(out: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the output folder, made if absent, for one run; removes what dead runs left half-written.

    shared : with others that hold it so, each of which writes other files; then nothing is removed.
    Raises UsageError when another run holds it or it cannot be written. The lock is the kernel's, so a
    killed run leaves none.
    """
    import fcntl

    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):  # an earlier run's lock file may still be writable
            raise PermissionError(errno.EACCES, "it is read-only, or you have no permission to write")
        handle = _opened(out / LOCK_NAME)
    except OSError as error:
        if unfetched(out / LOCK_NAME):
            raise UsageError(
                f"{out.name}: what an earlier run left is not here, only links to it.",
                f"Fetch it first, in its data set:  {fetch_folder_command(out / LOCK_NAME)}",
            ) from error
        raise UsageError(
            f"cannot write into the output folder {out.name}: {error.strerror}.",
            "Choose a folder that you may write to:  --out DIR",
        ) from error
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            sure = True
        except BlockingIOError as error:
            raise UsageError(
                f"another run of hz is writing into {out.name}.",
                "Wait until it has ended, or choose another folder with --out DIR.",
            ) from error
        except OSError:  # some network file systems have no locks; then nobody else's files are touched
            sure = False
        if not shared:
            remove_leftovers(out, sure=sure)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Hold a folder's lock for a moment, after whoever holds it now; where there are no locks, at once.

    Raises OSError where the lock's file cannot be made.
    """
    import fcntl

    handle = _opened(folder / LOCK_NAME)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _opened(lock: Path) -> int:
    """A handle that can be locked. A file that is there stays as it is; one that may only be read, as
    git-annex keeps what is committed, will do.

    A new one holds random letters: git-annex keeps files of the same bytes as one file, and two folders of a
    data set, once committed, would have one lock.
    """
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        try:
            return os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            return os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a disk that is full: the lock is one all the same
        os.write(handle, os.urandom(16).hex().encode() + b"\n")
    return handle


def remove_leftovers(out: Path, *, sure: bool = True) -> list[str]:
    """Remove temp files that runs which are gone left in `out` and `out`/figures; returns their names.

    sure : the folder is locked, so every temp file is a dead run's, even where its process number is in
        use again (in a container it always is). Otherwise only those go whose process is gone.
    """
    removed: list[str] = []
    for folder in (out, out / "figures"):
        if not folder.is_dir():
            continue
        if not sure:
            sweep_temporaries(folder)
            continue
        for entry in sorted(os.listdir(folder)):
            if not _TEMP.match(entry):
                continue
            with contextlib.suppress(OSError):
                (folder / entry).unlink()
                removed.append(entry)
    return removed
