"""The DICOM files below a folder, by how they begin.

Links are not followed, but for those to content that git-annex keeps for the data set. What is passed over
is said by number, since names may be those of patients. Archives are for `intake`.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from hz_runtime.errors import UnreadableScan, UnsupportedScan
from hz_runtime.io.annex import fetch_command, leads_into_annex, unfetched
from hz_runtime.io.volume import is_scan_name

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MOST_FILES = 100_000  # of any kind, in one input
_SUFFIXES = (".dcm", ".ima")
HEAD = 132  # preamble and "DICM"
_UNFETCHED, _ELSEWHERE = "not fetched", "elsewhere"


def find_dicom(folder: Path, most: int, note: Callable[[str], None]) -> list[Path]:
    """The DICOM files below `folder`, in the order of their names, those that only are named so among them.

    most : files of any kind that are looked at.  note : called with a line for what is left out beside them.
    Messages name neither files nor folders. Raises UnreadableScan where there are more files, UnsupportedScan
    where none of them is DICOM.
    """
    refused: list[OSError] = []
    left: Counter[str] = Counter()
    found = list(_walk(folder, most, refused.append, left))
    lines = [*_closed(refused), *_left_out(left)]
    if not any(like for _, like in found):
        more = f" ({'; '.join(lines)})" if lines else ""
        raise UnsupportedScan(
            f"no DICOM file is in the input{more}.",
            "Run the same command when it is fetched."
            if left[_UNFETCHED]
            else "Give the folder, .zip or .tar.gz that holds the series' slices.",
        )
    for line in lines:
        note(line)
    return [path for path, _ in found]


def holds_dicom(folder: Path) -> bool:
    """Whether `find_dicom` has something to say of a folder: DICOM, content not fetched, or too much."""
    left: Counter[str] = Counter()
    try:
        found = _walk(folder, MOST_FILES, lambda _: None, left)
        return any(like for _, like in found) or left[_UNFETCHED] > 0
    except UnreadableScan:
        return True


def find_archives(folder: Path) -> list[Path]:
    """Files below `folder` that are named as archives, in the order of their names; no hidden folders, and no
    links elsewhere."""
    return [path for path in _named(folder, ARCHIVES) if not path.is_symlink() or leads_into_annex(path)]


def named_like_dicom(name: str) -> bool:
    """Whether a file is named as DICOM: one that is empty, or torn, still is the place of an image."""
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")  # "._1.dcm" is macOS's


def count_by_name(folder: Path) -> int:
    """How many files below `folder` are named as DICOM; no hidden folders."""
    return sum(1 for _ in _named(folder, _SUFFIXES))


def is_archive(name: str) -> bool:
    """Whether a file is named as an archive that `intake` unpacks."""
    return name.lower().endswith(ARCHIVES)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM or named as an archive of it, and not as a scan."""
    if is_scan_name(path):
        return False
    return is_archive(path.name) or begins_like_dicom(path)


def begins_like_dicom(path: Path) -> bool:
    """Whether a file can be read and `looks_like_dicom`."""
    try:
        with open(path, "rb") as file:
            return looks_like_dicom(file.read(HEAD))
    except OSError:
        return False


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are a DICOM preamble, or group 0008 or 0002 as old files begin."""
    if head[128:132] == b"DICM":
        return True
    return len(head) == HEAD and head[:2] in (b"\x08\0", b"\x02\0") and head[3:4] == b"\0"


def too_much(what: str) -> UnreadableScan:
    """What to say of an input that holds more than hz takes in."""
    return UnreadableScan(
        f"the input holds {what}.", "Give hz the folder of one examination, or unpack the archive yourself."
    )


def _walk(
    folder: Path, most: int, refused: Callable[[OSError], None], left: Counter[str]
) -> Iterator[tuple[Path, bool]]:
    """(file, whether it begins like DICOM) of those that do, or are named so.

    left : counts what is passed over.
    """
    count = 0
    for here, folders, files in os.walk(folder, onerror=refused):
        at = Path(here)
        left[_ELSEWHERE] += sum((at / name).is_symlink() for name in folders)
        folders[:] = sorted(name for name in folders if name != ".git")  # what links lead to lies in there
        for name in sorted(files):
            count += 1
            if count > most:
                raise too_much(f"more than {most} files")
            path = at / name
            if unfetched(path):
                left[_UNFETCHED] += 1
            elif path.is_symlink() and not leads_into_annex(path):
                left[_ELSEWHERE] += 1
            elif _regular(path) and ((like := begins_like_dicom(path)) or named_like_dicom(name)):
                yield path, like


def _named(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here) / name for name in sorted(files) if name.lower().endswith(suffixes))


def _regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _closed(refused: list[OSError]) -> Iterator[str]:
    if refused:
        why = refused[0].strerror or type(refused[0]).__name__
        many = _many(len(refused), "folder")
        yield f"{many} of the DICOM input cannot be listed ({why}): what is in there is missing"


def _left_out(left: Counter[str]) -> Iterator[str]:
    if many := left[_UNFETCHED]:
        files = _many(many, "file")
        yield f"the content of {files} of the DICOM input was not fetched:  {fetch_command('PATH')}"
    if many := left[_ELSEWHERE]:
        yield f"{_many(many, 'link')} in the DICOM input not followed, for leading elsewhere"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
