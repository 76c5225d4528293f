"""Scans below a folder, by their names; nothing is opened to find out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import printable, shown
from hz_runtime.io.volume import is_scan_name


def find_scans(
    folder: Path,
    unreadable: Callable[[str], None] | None = None,
    enter: Callable[[Path], bool] = lambda _: True,
) -> Iterator[Path]:
    """Files named as scans below `folder`, folder by folder, in the order of their names; no hidden ones.

    unreadable : called with a line for every folder that cannot be listed, and the rest goes on; None: then
    UsageError is raised.  enter : whether to look into a folder. Links to folders are not followed.
    """

    def refuse(error: OSError) -> None:
        place = os.path.relpath(error.filename or folder, folder)
        name = shown(folder) if place == os.curdir else printable(place)
        line = f"{name}: the folder cannot be listed ({error.strerror or type(error).__name__})"
        if unreadable is None:
            raise UsageError(f"{line}.", "Make it readable, or name the scans one by one.") from error
        unreadable(line)

    for here, folders, files in os.walk(folder, onerror=refuse):
        at = Path(here)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and enter(at / name))
        yield from (at / name for name in sorted(files) if is_scan_name(at / name) and name[0] != ".")
