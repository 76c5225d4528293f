"""dciodvfy, a validator of DICOM objects that is not hz's: what it holds against a file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

# What dciodvfy calls the kinds of objects that hz writes; it checks nothing of one that it does not know.
KINDS = {"MRImage", "EnhancedSR", "SCImage", "EncapsulatedPDF"}


def complaints(path: Path) -> list[str]:
    """Errors that dciodvfy finds in a file; skips where it is not installed."""
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("needs dciodvfy, of the Debian package dicom3tools")
    done = subprocess.run([tool, str(path)], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert KINDS & {line.strip() for line in lines}, f"{path.name}: an object of no known kind"
    return [line for line in lines if line.startswith(("Error", "Abort"))]
