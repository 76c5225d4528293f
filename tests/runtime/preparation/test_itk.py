"""niimath's N4 and pose against SimpleITK's, on a real brain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.foreground import foreground_threshold
from hz_runtime.model_space.resample import resample, scaled_affine
from hz_runtime.preparation import registration
from hz_runtime.preparation.n4 import corrected
from hz_runtime.preparation.template import mni152, points

pytest.importorskip("niimath")
itk = pytest.importorskip("itk_reference", reason="needs SimpleITK")


@pytest.fixture(scope="module")
def brain(scans: Path) -> tuple[np.ndarray, np.ndarray]:
    """(data, affine) of a stripped scan at 2 mm."""
    scan = read_volume(scans / "skullstripped" / "oasis_1000_brain.nii.gz")
    shape = tuple(n // 2 for n in scan.shape)
    affine = scaled_affine(scan.shape, scan.affine, shape)
    return np.maximum(resample(scan.data, scan.affine, shape, affine), 0), affine


@pytest.mark.slow
def test_the_field_is_itks(scans: Path) -> None:
    """On the scan's own 1 mm voxels; resampled to 2 mm first, the two differ by up to 0.3 %."""
    scan = read_volume(scans / "skullstripped" / "oasis_1000_brain.nii.gz")
    data, affine = np.maximum(scan.data, 0), scan.affine
    inside = data > foreground_threshold(data)
    own = data[inside] / corrected(data, affine)[inside]
    reference = itk.field(data, affine, inside)[inside]
    assert own.std() > 0.01  # there is a field to agree on
    assert np.abs(own / reference - 1).max() < 1e-4


@pytest.mark.slow
def test_the_pose_is_within_a_millimetre_of_itks(brain: tuple[np.ndarray, np.ndarray]) -> None:
    data, affine = brain
    template = mni152()
    own, *_ = registration.registered(data, affine, template)
    reference = itk.affine_pose(data, affine, template)
    at = points(data > foreground_threshold(data), affine)
    rigid = [registration.rigid_pose(pose, template.centre_mm) for pose in (own, reference)]
    assert registration.mean_distance(*rigid, at) < 1
