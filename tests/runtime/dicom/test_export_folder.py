"""What exports that were killed leave in the output folder is gone with the next one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

import small_dicom as small
from hz_runtime.dicom.export_folder import replacing
from hz_runtime.dicom.series import find_series

_EXPORT = """
import sys
from pathlib import Path
from hz_runtime.dicom.export_folder import replacing
from hz_runtime.dicom.series import find_series
(series,) = find_series(sorted(Path(sys.argv[1]).iterdir()))
with replacing(sys.argv[2], series) as folder:
    (folder / "MR_0001.dcm").write_bytes(b"Doe^Jane")
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_a_killed_export_leaves_no_image_behind(tmp_path: Path) -> None:
    """One that still runs keeps its folder."""
    (series,) = find_series(small.write_series(tmp_path / "in"))
    out = tmp_path / "out"
    command = [sys.executable, "-c", _EXPORT, str(tmp_path / "in"), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as export:
        try:
            assert export.stdout is not None and export.stdout.readline() == "begun\n"
            (private,) = out.iterdir()
            with replacing(out, series):
                assert (private / "MR_0001.dcm").is_file()
        finally:
            export.kill()
    assert export.returncode == -signal.SIGKILL and list(out.iterdir()) == [private]
    with replacing(out, series) as folder:
        assert list(out.iterdir()) == [folder]
    assert not list(out.iterdir())
