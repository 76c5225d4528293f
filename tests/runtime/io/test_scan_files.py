"""Scans below a folder, and folders that cannot be listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from closed_folders import close
from hz_runtime.errors import UsageError
from hz_runtime.io.scan_files import find_scans


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.nii", "a.nii.gz", "z/c.mgz", "z/deep/d.nii", ".hidden/e.nii", "z/.f.nii", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def names(folder: Path, *more: object) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in find_scans(folder, *more)]  # type: ignore[arg-type]


def test_files_in_the_order_of_their_names(folder: Path) -> None:
    assert names(folder) == ["a.nii.gz", "b.nii", "z/c.mgz", "z/deep/d.nii"]
    assert names(folder, None, lambda path: path.name != "deep") == ["a.nii.gz", "b.nii", "z/c.mgz"]


def test_a_closed_folder_is_a_line_and_the_rest_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(monkeypatch, folder / "z" / "deep")
    lines: list[str] = []
    assert names(folder, lines.append) == ["a.nii.gz", "b.nii", "z/c.mgz"]
    assert lines == ["z/deep: the folder cannot be listed (Permission denied)"]
    with pytest.raises(UsageError, match=r"z/deep: the folder cannot be listed \(Permission denied\)"):
        names(folder)


def test_the_folder_itself_is_named_without_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close(monkeypatch, folder)
    lines: list[str] = []
    assert names(folder, lines.append) == []
    assert lines == ["in: the folder cannot be listed (Permission denied)"]
