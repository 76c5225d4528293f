"""Content that git-annex, and so DataLad, keeps apart from a data set's tree: what is a place for it, and
whether it is there.

In the tree stands a link into .git/annex/objects, broken where the content was not fetched, or, in an
unlocked file, a line of text in its place. Nothing is fetched here.
"""

from __future__ import annotations

import os
import shlex
import stat
from itertools import pairwise
from pathlib import Path

_POINTER = b"/annex/objects/"
_POINTER_MAX = 32 * 1024  # bytes; git-annex takes nothing longer for a pointer


def leads_into_annex(path: Path) -> bool:
    """Whether a file is a link to content that git-annex keeps, which may not be there."""
    try:
        parts = Path(os.readlink(path)).parts
    except OSError:  # no link
        return False
    return ".git" in parts and ("annex", "objects") in pairwise(parts)


def unfetched(path: Path) -> bool:
    """Whether a file stands for content that is not here: a broken link, or a pointer of git-annex."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return path.is_symlink()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size > _POINTER_MAX:
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def fetch_command(name: str) -> str:
    """How to fetch the content of a file or folder.  name : as the user would write it."""
    return f"datalad get {shlex.quote(name)}"
