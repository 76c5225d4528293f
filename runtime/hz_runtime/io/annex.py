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

from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import shown

_POINTER = b"/annex/objects/"
_LINKS_MAX = 40  # one after the other: what Linux follows
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


def require_fetched(path: Path, error: type[HzError] = UsageError) -> None:
    """Raise `error` where a file stands for content that is not here, with the command that fetches it."""
    if unfetched(path):
        raise error(
            f"{shown(path)}: its content is not here, only a link or a pointer to it.",
            f"Fetch it first, in its data set:  {fetch_command(in_data_set(path))}",
        )


def in_data_set(path: Path) -> str:
    """The path of a file from the root of the data set that it is in, as `datalad get` takes it there.

    The root is where the .git is that a link leads into, or, of a pointer, the nearest folder above that has
    one. A file of no data set keeps its bare name.
    """
    place = Path(os.path.realpath(path.parent), path.name)
    for _ in range(_LINKS_MAX):
        try:
            target = Path(os.path.normpath(place.parent / os.readlink(place)))
        except OSError:  # no link
            break
        if ".git" in target.parts:
            root = Path(*target.parts[: target.parts.index(".git")])
            return os.path.relpath(place, root)
        place = Path(os.path.realpath(target.parent), target.name)
    roots = [folder for folder in place.parents if (folder / ".git").exists()]
    return os.path.relpath(place, roots[0]) if roots else path.name


def fetch_command(name: str) -> str:
    """How to fetch the content of a file or folder.  name : as the user would write it."""
    return f"datalad get {shlex.quote(name)}"


def fetch_folder_command(file: Path) -> str:
    """How to fetch all of the folder that a file is in, from the root of its data set."""
    return fetch_command(os.path.dirname(in_data_set(file)) or ".")
