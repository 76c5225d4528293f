"""Files whose content git-annex has not fetched, as a clone of a DataLad data set holds them."""

from __future__ import annotations

import os
from pathlib import Path


def unfetch(path: Path, root: Path, pointer: bool = False) -> Path:
    """Put in a file's place what git-annex leaves in the data set `root`: a broken link, or a pointer."""
    (root / ".git").mkdir(exist_ok=True)
    key = f"MD5E-s3--900150983cd24fb0d6963f7d28e17f72{path.suffix}"
    path.unlink(missing_ok=True)
    if pointer:
        path.write_text(f"/annex/objects/{key}\n")
    else:
        objects = root / ".git" / "annex" / "objects" / "wq" / "J8" / key
        path.symlink_to(os.path.relpath(objects / key, path.parent))
    return path
