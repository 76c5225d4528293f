"""An output folder that cannot be written: one line before any work."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import finished
from small_scans import write_scans


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to, with an earlier run's folder "before" in it."""
    folder = tmp_path / "read-only"
    (folder / "before").mkdir(parents=True)
    if os.geteuid():  # root may write into any folder, but not on a disk that is mounted read-only
        (folder / "before" / ".hz.lock").touch()
        for each in (folder / "before", folder):
            each.chmod(0o555)
        yield folder
        for each in (folder, folder / "before"):
            each.chmod(0o755)
        return
    made = subprocess.run(["mount", "-t", "tmpfs", "hz-test", folder], capture_output=True)
    if made.returncode:
        pytest.skip("nothing can be mounted here, and root may write into any folder")
    (folder / "before").mkdir()
    (folder / "before" / ".hz.lock").touch()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("command", ["run", "prepare"])
@pytest.mark.parametrize("name", ["before", "new"])
def test_it_is_told_before_any_work(
    tmp_path: Path, read_only: Path, tiny_bundle: Path, command: str, name: str
) -> None:
    if command == "prepare":
        pytest.importorskip("niimath")
    write_scans(tmp_path / "in", 1)
    more = ("--model", tiny_bundle) if command == "run" else ()
    code, said, told = finished(command, tmp_path / "in", "--out", read_only / name, *more)
    assert (code, said) == (2, "")
    message, remedy = told.splitlines()
    assert message.startswith(f"error: cannot write into the output folder {name}: ")
    assert "--out DIR" in remedy
    assert str(read_only) not in told


def test_dicom_is_not_written_there(tmp_path: Path, read_only: Path) -> None:
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    pytest.importorskip("dcm2niix", reason="needs the extra dicom")
    from small_dicom import write_series

    write_series(tmp_path / "in")
    for name in ("before", "new"):
        code, said, told = finished("dicom", "convert", tmp_path / "in", "--out", read_only / name)
        assert (code, said) == (2, "")
        assert (
            told.startswith("error: the output folder cannot be made or written")
            and len(told.splitlines()) == 2
        )
        assert str(read_only) not in told
