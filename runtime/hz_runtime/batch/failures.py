"""What stopped a scan, in one line that names no folder."""

from __future__ import annotations

import errno
import re
import traceback
from pathlib import Path

from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.log import LOG_NAME
from hz_runtime.errors import HzError, ProgramDied, ScanError
from hz_runtime.io.atomic import shown


def failure(error: BaseException, scan: InputScan, out: Path, log: str = LOG_NAME) -> tuple[str, str | None]:
    """(reason in one line, traceback for the log or None) of what stopped a scan. Names no folder."""
    if isinstance(error, HzError):
        reason = scrub(error.one_line, scan, out)
        return reason.removeprefix(f"{shown(scan.path)}: "), None  # the row names the scan already
    if isinstance(error, MemoryError):
        return "not enough memory for this scan; run it alone, or on a machine with more.", None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            "the disk is full, of results or of temporary files (TMPDIR): nothing was kept of this scan; "
            "make room and run the same command again.",
            None,
        )
    text = " ".join(f"{type(error).__name__}: {error}".split())
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, OSError):
        text = f"{error.strerror or type(error).__name__} (the traceback is in {log})"
        return scrub(text, scan, out), scrub(trace, scan, out)
    return scrub(f"internal: {text} (the traceback is in {log})", scan, out), scrub(trace, scan, out)


def blames_the_scan(error: BaseException) -> bool:
    """Whether an error is about the scan itself, not about the disk, the memory or the time that it met.

    Only then does it take an earlier result of the scan away.
    """
    cause = error.__cause__
    if isinstance(cause, MemoryError):
        return False
    # A damaged gzip stream is an OSError without a number; the system's own have one.
    of_the_system = isinstance(cause, OSError) and cause.errno is not None
    return isinstance(error, ScanError) and not isinstance(error, ProgramDied) and not of_the_system


def scrub(text: str, scan: InputScan | None, out: Path) -> str:
    """`text` without the folders of the input, the output and the code."""
    folders = [(str(out), "OUT")]
    if scan is not None:
        folders.append((str(scan.path), scan.label))
        folders.append((str(scan.path.parent), "IN"))
    for folder, name in sorted(folders, key=lambda f: -len(f[0])):
        if len(folder) > 1:
            text = text.replace(folder, name)
    return re.sub(r'File "[^"]*?([^/"]+/[^/"]+)"', r'File "\1"', text)
