"""What a folder holds, times included: to see whether a run touched anything."""

from __future__ import annotations

from pathlib import Path


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """{relative name: (bytes, time of the last change in ns, inode)} of all below `folder`."""
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes() if path.is_file() else b"",
            (found := path.lstat()).st_mtime_ns,
            found.st_ino,
        )
        for path in sorted(folder.rglob("*"))
    }
