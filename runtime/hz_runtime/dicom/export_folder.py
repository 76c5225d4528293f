"""The folder that a result is written back to: it holds one export of one series, whole, and nothing mixed.

Two patients' images in one folder would be filed together, and an old report beside new images would be read
as theirs. So an export replaces an earlier one of the same series at once, and never one of another.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from hz_runtime.dicom.convert import make_folder
from hz_runtime.dicom.deidentify import quiet
from hz_runtime.dicom.series import Series
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import shown, sync_folder

_REFERENCES = ("SourceImageSequence", "CurrentRequestedProcedureEvidenceSequence", "SourceInstanceSequence")
_PRIVATE = ".hz-dicom-"
_NAMES = ("MR_*.dcm", "SR_age.dcm", "SC_page_*.dcm", "PDF_page.dcm")


@contextmanager
def replacing(out: str | os.PathLike[str], series: Series) -> Iterator[Path]:
    """A private folder in `out`, which is made; what is in it at the context's end replaces the export there.

    After an error `out` holds what it held, or is not there. Raises UsageError as `earlier_export`, HzError
    (disk).
    """
    target = Path(out)
    earlier = earlier_export(target, series)
    with _made(target):
        yield from _filled(target, earlier)


@contextmanager
def _made(target: Path) -> Iterator[None]:
    """A folder; after an error those that had to be made for it are gone."""
    absent = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        make_folder(target)
        yield
    except BaseException:
        with suppress(OSError):  # somebody else has put something there
            for folder in absent:
                folder.rmdir()
        raise


def _filled(target: Path, earlier: Sequence[Path]) -> Iterator[Path]:
    _remove_abandoned(target)
    try:
        private = tempfile.TemporaryDirectory(prefix=_PRIVATE, dir=target)
    except OSError as error:
        raise _unwritable(error) from error
    with private as name, _locked(Path(name)):
        folder = Path(name)
        yield folder
        try:
            made = {path.name: path for path in folder.iterdir()}
            for stale in earlier:
                if stale.name not in made:
                    stale.unlink()
            for path in made.values():
                os.replace(path, target / path.name)
            sync_folder(target)
        except OSError as error:
            raise _unwritable(error) from error


def _remove_abandoned(target: Path) -> None:
    """Remove what exports that were killed left in their private folders: a part of a patient's images."""
    for left in target.glob(f"{_PRIVATE}*"):
        with _locked(left) as ours:
            if ours:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which ends with its process; whether it is held: another may have it, the folder
    may be none, and some network file systems have no locks."""
    import fcntl

    with ExitStack() as held:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            held.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except OSError:
            ours = False
        yield ours


def earlier_export(folder: Path, series: Series) -> list[Path]:
    """The files of an export of `series` that are in `folder`.

    Raises UsageError where files named like an export are there that were not made of `series`.
    """
    found = sorted(path for pattern in _NAMES for path in folder.glob(pattern))
    own = {plane.sop_uid for plane in series.slices}
    with quiet():
        for path in found:
            if not own.issuperset(_referenced(path) or {""}):
                raise UsageError(
                    f"the output folder holds a file of another export ({shown(path)}).",
                    "Name an empty folder:  --out DIR",
                )
    return found


def _referenced(path: Path) -> set[str]:
    """SOPInstanceUIDs of the source that a file of an export names; none of another file."""
    from pydicom import dcmread

    try:
        data = dcmread(path, stop_before_pixels=True, specific_tags=list(_REFERENCES))
        return set(_uids(data))
    except Exception:  # whatever a file that hz did not write makes pydicom raise
        return set()


def _uids(data: Any) -> Iterator[str]:
    for element in data.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            yield str(element.value)


def _unwritable(error: OSError) -> HzError:
    return HzError(
        f"the output folder cannot be written ({error.strerror or type(error).__name__}).",
        "Make room, or name another folder:  --out DIR",
    )
