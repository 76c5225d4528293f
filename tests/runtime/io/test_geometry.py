"""A header that places a scan twice: where the two places differ, other readers show another one."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import THICKEST_MM, header_flags

AFFINE = np.array([[-1.0, 0, 0, 60], [0, 1, 0, -80], [0, 0, 1, -70], [0, 0, 0, 1]])


def about_x(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])


def moved(mm: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = mm
    return affine


def scan(path: Path, sform: np.ndarray, qform: np.ndarray | None, codes: tuple[int, int] = (1, 1)) -> Path:
    data = np.random.default_rng(0).integers(0, 900, (32, 40, 36)).astype(np.int16)
    image = nib.Nifti1Image(data, sform)
    image.header.set_sform(sform, code=codes[0])
    image.header.set_qform(sform if qform is None else qform, code=codes[1])
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    "qform, said",
    [
        (AFFINE, ""),
        (about_x(0.5) @ AFFINE, ""),
        (moved(1.5) @ AFFINE, ""),
        (about_x(20) @ AFFINE, "20 degrees"),
        (about_x(3) @ AFFINE, "3 degrees"),
        (moved(40) @ AFFINE, "0 degrees and up to 40 mm apart"),
        (AFFINE @ np.diag([-1.0, 1, 1, 1]), "left from right"),
    ],
)
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 1)])
def test_two_poses_that_differ_are_said(
    tmp_path: Path, qform: np.ndarray, said: str, codes: tuple[int, int]
) -> None:
    """nibabel 5.4 takes the sform of all of these, SimpleITK 2.5 the qform where its code is 1."""
    conflict = read_volume(scan(tmp_path / "a.nii", AFFINE, qform, codes)).geometry.conflict
    assert said in conflict and bool(conflict) is bool(said)


def test_a_pose_without_a_code_says_nothing(tmp_path: Path) -> None:
    assert not read_volume(scan(tmp_path / "a.nii", AFFINE, about_x(20) @ AFFINE, (1, 0))).geometry.conflict
    assert not read_volume(scan(tmp_path / "b.nii", AFFINE, about_x(20) @ AFFINE, (0, 1))).geometry.conflict


def test_voxel_sizes_at_odds_with_the_sform_are_said(tmp_path: Path) -> None:
    path = scan(tmp_path / "a.nii", AFFINE @ np.diag([1, 1, 1.2, 1]), None, (1, 0))
    raw = bytearray(path.read_bytes())
    raw[76 + 12 : 76 + 16] = np.float32(1.0).tobytes()
    path.write_bytes(raw)
    assert "1 x 1 x 1 mm by pixdim and 1 x 1 x 1.2 mm" in read_volume(path).geometry.conflict


@pytest.mark.parametrize("mm, flagged", [(THICKEST_MM, False), (5.0, True)])
def test_thick_slices_are_flagged_as_preparation_refuses_them(
    tmp_path: Path, mm: float, flagged: bool
) -> None:
    volume = read_volume(scan(tmp_path / "a.nii", AFFINE @ np.diag([1, 1, mm, 1]), None, (1, 1)))
    assert any(f"slices of {mm:g} mm" in flag for flag in header_flags(volume)) is flagged


def test_a_grid_that_is_coarse_all_over_has_no_slices(tmp_path: Path) -> None:
    """A scan averaged to 4 mm: no scanner makes one, and the networks' grid is hardly finer."""
    coarse = AFFINE @ np.diag([4.0, 4, 4, 1])
    assert header_flags(read_volume(scan(tmp_path / "a.nii", coarse, None))) == []


def test_both_are_among_the_flags_of_a_scan(tmp_path: Path) -> None:
    thick = AFFINE @ np.diag([1, 1, 5.0, 1])
    flags = header_flags(read_volume(scan(tmp_path / "a.nii", thick, about_x(20) @ thick)))
    assert len(flags) == 2 and "disagrees with itself" in flags[0] and "slices of 5 mm" in flags[1]
