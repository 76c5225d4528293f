"""A head and its copies in another unit, with other air, or turned, give the same brain at the same place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.morphology import dilated
from hz_runtime.model_space.recipe import Recipe, to_model_space
from hz_runtime.preparation.registration import mean_distance
from hz_runtime.preparation.steps import PreparedHead, prepare_head
from hz_runtime.preparation.template import mni152, points
from small_heads import as_volume, made_head, moved

pytest.importorskip("niimath")

F32 = np.ndarray
TURN = moved((20, 0, 0))
COPIES: dict[str, Callable[[F32, F32], F32]] = {
    "scaled and shifted": lambda head, around: 0.01 * head + 700,
    "NaN as air": lambda head, around: np.where(around, head, np.nan),
    "z-scored inside, air 0": lambda head, around: np.where(
        around, (head - head[around].mean()) / head[around].std(), 0
    ),
}


def around_head(head: F32) -> F32:
    return dilated(head > 100, 3)


def prepared_copy(path: Path, data: F32, affine: F32) -> PreparedHead:
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return prepare_head(read_volume(path), mni152())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> PreparedHead:
    head, _, affine = made_head(seed=2)
    return prepared_copy(tmp_path_factory.mktemp("head") / "head.nii", head, affine)


@pytest.mark.parametrize("name", COPIES)
def test_copies_give_the_same_brain(name: str, original: PreparedHead, tmp_path: Path) -> None:
    head, _, affine = made_head(seed=2)
    copy = prepared_copy(tmp_path / "copy.nii", COPIES[name](head, around_head(head)), affine)
    assert_same(copy, original, np.eye(4), most=0.01)


def test_a_turned_header_gives_the_same_brain(original: PreparedHead, tmp_path: Path) -> None:
    head, _, affine = made_head(seed=2)
    assert_same(prepared_copy(tmp_path / "copy.nii", head, TURN @ affine), original, TURN, most=0.01)


@pytest.mark.slow
def test_copies_of_a_real_head_give_the_same_brain(scans: Path) -> None:
    scan = read_volume(scans / "wholehead" / "IXI034-HH-1260_T1_2mm.nii.gz")
    first = prepare_head(as_volume(scan.data, scan.affine), mni152())
    for scale, shift, turn in ((0.01, 0, np.eye(4)), (1, -3000, moved((0, 20, 0)))):
        copy = prepare_head(as_volume(scale * scan.data + shift, turn @ scan.affine), mni152())
        assert_same(copy, first, turn, most=0.01)


def assert_same(copy: PreparedHead, original: PreparedHead, turn: F32, most: float) -> None:
    """Poses within 0.05 mm; what the networks read differs by `most` of its range in the brain's mean."""
    template = mni152()
    world = points(template.mask, np.linalg.inv(original.pose) @ template.affine)
    assert mean_distance(copy.pose @ turn, original.pose, world) < 0.05
    grids = [on_grid(head) for head in (copy, original)]
    assert np.abs(grids[0] - grids[1])[grids[1] > 0.1].mean() < most


def on_grid(head: PreparedHead) -> F32:
    """By the median, which does not hang on one voxel."""
    brain = as_volume(head.template_brain, mni152().affine)
    return to_model_space(brain, Recipe(placement="none", intensity="median")).grid
