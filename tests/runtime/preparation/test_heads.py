"""Whole heads through preparation: moved on purpose, in several orientations, and real ones."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from hz_runtime.io.geometry import spacing_of
from hz_runtime.io.volume import Volume, read_volume
from hz_runtime.model_space.resample import resample, scaled_affine
from hz_runtime.preparation import registration
from hz_runtime.preparation.steps import PreparedHead, prepare_head
from hz_runtime.preparation.template import mni152, points
from small_heads import as_volume, made_head, moved, write_head

pytest.importorskip("niimath")

MOVES = {
    "rotated": moved((30, 0, 0)),
    "turned and shifted": moved((-20, 15, 25), (25, -20, -24)),  # 40 mm
}


def coarse(path: Path) -> Volume:
    """A real scan at 2 mm, for speed."""
    scan = read_volume(path)
    shape = tuple(round(n * s / 2) for n, s in zip(scan.shape, spacing_of(scan.affine), strict=True))
    affine = scaled_affine(scan.shape, scan.affine, shape)
    return as_volume(resample(scan.data, scan.affine, shape, affine), affine)


@pytest.fixture(scope="module")
def prepared() -> PreparedHead:
    head, _, affine = made_head()
    return prepare_head(as_volume(head, affine), mni152())


def test_a_made_up_head_is_found_and_stripped(prepared: PreparedHead) -> None:
    _, brain, affine = made_head()
    dice = 2 * (prepared.mask & brain).sum() / (prepared.mask.sum() + brain.sum())
    assert dice > 0.95
    assert prepared.how == "template"
    at = points(brain, affine)
    assert registration.mean_distance(prepared.pose, np.eye(4), at) < 2  # the template's own anatomy
    assert np.allclose(prepared.pose[:3, :3] @ prepared.pose[:3, :3].T, np.eye(3), atol=1e-9)
    assert prepared.template_brain.shape == prepared.template_mask.shape == (91, 109, 91)
    assert not prepared.template_brain[~prepared.template_mask].any()
    assert not prepared.brain[~prepared.mask].any()
    assert {v.gate for v in prepared.verdicts} >= {"similarity", "coverage", "capture", "brain volume"}


@pytest.mark.parametrize("move", MOVES)
def test_a_moved_head_is_found_again(move: str) -> None:
    template = mni152()
    head, _, affine = made_head(MOVES[move], seed=1)
    pose, found, *_ = registration.registered(head, affine, template)
    rigid = registration.rigid_pose(pose, template.centre_mm)
    left = registration.mean_distance(rigid @ MOVES[move], np.eye(4), points(template.mask, template.affine))
    assert found > registration.WILL_DO
    assert left < 2


@pytest.mark.slow
def test_a_real_head_moved_is_found_again(scans: Path) -> None:
    """The pose of a real head after a move of 30 degrees and 40 mm, against its pose before."""
    template = mni152()
    scan = coarse(scans / "wholehead" / "ds000011_sub-01_T1w.nii.gz")
    move = moved((-14, 10, 24), (-24, 20, 25))
    # Onto a larger box, so that nothing of the head is cut off.
    shape = tuple(n + 60 for n in scan.shape)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (move @ scan.affine @ [*(n / 2 for n in scan.shape), 1])[:3] - np.array(shape)
    again = resample(scan.data, move @ scan.affine, shape, affine)
    poses = [
        registration.rigid_pose(registration.registered(data, at, template)[0], template.centre_mm)
        for data, at in ((scan.data, scan.affine), (again, affine))
    ]
    world = points(template.mask, np.linalg.inv(poses[0]) @ template.affine)
    assert registration.mean_distance(poses[1] @ move, poses[0], world) < 2


@pytest.mark.parametrize("codes", ["LPI", "PSR", "ASL"])
def test_orientations_agree(codes: str, tmp_path: Path) -> None:
    """However a file stores its axes, the same voxels reach the registration, in the same place."""
    head, _, affine = made_head()
    plain = read_volume(write_head(tmp_path / "head.nii.gz", head, affine))
    image = nib.load(tmp_path / "head.nii.gz")
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(codes)))
    nib.save(image.as_reoriented(turn), tmp_path / "turned.nii.gz")
    turned = read_volume(tmp_path / "turned.nii.gz")
    # nibabel's own rescaling to int16 when it writes
    assert np.allclose(turned.data, plain.data, atol=1e-3 * plain.data.max())
    assert np.allclose(turned.affine, plain.affine, atol=1e-4)


@pytest.mark.slow
def test_a_stripped_real_scan_is_not_stripped_again(scans: Path) -> None:
    scan = read_volume(scans / "skullstripped" / "oasis_1000_brain.nii.gz")
    head = prepare_head(scan, mni152(), dof=12)
    assert head.how == "stripped"
    kept = head.mask[scan.data > 0.2 * scan.data.max()]
    assert kept.mean() > 0.999
    assert head.template_mask.sum() * 0.008 == pytest.approx(1886, rel=0.08)  # scaled to the template's brain
