"""Label maps of tissues and of regions, in the scan's space and in the one that hz-prepare brought it to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="hz_train needs it")

from hz_runtime.errors import UsageError
from hz_runtime.io.volume import Geometry, write_volume
from hz_train.cohort import Scan
from hz_train.studies.tissue_labels import check_cover, tissue_labels

SHAPE = (12, 10, 8)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
VALUES = np.zeros(SHAPE, np.float32)
VALUES[2:10, 2:8, 2:6] = 1
VALUES[3:9, 3:7, 2:6] = 2
VALUES[4:8, 4:6, 2:6] = 3


def scan_with(folder: Path, values: np.ndarray, name: str = "scan.nii") -> Scan:
    folder.mkdir(exist_ok=True)
    path = folder / "dseg.nii"
    geometry = Geometry.from_affine(SHAPE, AFFINE)
    write_volume(path, np.asfortranarray(values, np.float32), geometry, dtype="float32")
    return Scan(folder / name, "a", "oslo", None, "n/a", "control", labels=path)


def test_a_map_of_tissues_stays_what_it_is_on_its_own_grid(tmp_path: Path) -> None:
    np.testing.assert_array_equal(tissue_labels(scan_with(tmp_path, VALUES), SHAPE, AFFINE), VALUES)
    finer = np.diag([1.5, 1.5, 1.5, 1.0])
    finer[:3, 3] = -0.75
    found = tissue_labels(scan_with(tmp_path, VALUES), tuple(2 * n for n in SHAPE), finer)
    assert np.bincount(found.ravel(), minlength=4)[3] == pytest.approx(8 * (VALUES == 3).sum(), rel=0.2)


@pytest.mark.parametrize("beside", [True, False])
def test_a_map_of_regions_goes_by_its_table(beside: bool, tmp_path: Path) -> None:
    codes = np.array([0, 4, 36, 81, 35])
    regions = codes[VALUES.astype(int)]
    regions[5, 5, 3] = 35  # brain stem: no tissue
    folder = tmp_path / "labels"
    scan = scan_with(folder, regions)
    with pytest.raises(UsageError, match="labels from 0 to 81") as refused:
        tissue_labels(scan, SHAPE, AFFINE)
    assert "labels.tsv" in str(refused.value.remedy)
    table = "index\tname\ttissue\n4\tVentricle\tCSF\n36\tCaudate\tGM\n81\tFrontal\tWM\n35\tStem\tother\n"
    (folder if beside else tmp_path).joinpath("labels.tsv").write_text(table)
    wanted = VALUES.copy()
    wanted[5, 5, 3] = 0
    np.testing.assert_array_equal(tissue_labels(scan, SHAPE, AFFINE), wanted)


@pytest.mark.made_up_results
def test_a_prepared_scan_finds_its_map_by_the_transform_beside_it(tmp_path: Path) -> None:
    """Two voxels to the right: what lies at x in the head lies at x + 6 mm in the template."""
    scan = scan_with(tmp_path, VALUES, "sub-1_space-MNI152_res-2_desc-brain_T1w.nii.gz")
    np.testing.assert_array_equal(tissue_labels(scan, SHAPE, AFFINE), VALUES)
    moved = np.eye(4)
    moved[0, 3] = 6.0
    text = json.dumps({"matrix": moved.tolist()})
    (tmp_path / "sub-1_from-T1w_to-MNI152_mode-image_xfm.json").write_text(text)
    np.testing.assert_array_equal(tissue_labels(scan, SHAPE, AFFINE), np.roll(VALUES, 2, axis=0))


def test_a_map_of_another_head_is_refused(tmp_path: Path) -> None:
    scan = scan_with(tmp_path, VALUES)
    labels = VALUES.astype(np.uint8)
    check_cover(scan, labels, labels > 0)
    white = np.where(labels == 3, labels, 0)
    brain = (white > 0) | np.roll(white > 0, 4, axis=0) | np.roll(white > 0, -4, axis=0)
    with pytest.raises(UsageError, match="covers 33% of the brain in scan"):
        check_cover(scan, white, brain)
