"""Small copies of a scan, judged by nibabel and by means taken the long way."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from hz_runtime.errors import HzError
from hz_runtime.model_space.foreground import block_means, blocks
from hz_runtime.report.thumbnail import MOST_VOXELS, axial_slice, check, thumbnail


def loaded(packed: bytes) -> nibabel.Nifti1Image:
    import gzip

    return nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))


def test_it_is_a_nifti_of_block_means_in_the_scans_own_place():
    rng = np.random.default_rng(0)
    data = np.asfortranarray(rng.uniform(100, 300, (20, 24, 9)).astype(np.float32))
    affine = np.array([[1, 0, 0, -40], [0, 0.98, 0, 7], [0, 0, 2.1, -3], [0, 0, 0, 1.0]])
    box = [(2, 17), (4, 24), (0, 9)]
    packed = thumbnail(data, affine, box, 100.0, 300.0, (0.1, 0.9))
    image = loaded(packed)
    assert image.shape == (7, 10, 9)  # 1 mm to 2, 0.98 mm to 1.96, 2.1 mm as it is
    assert image.get_data_dtype() == np.uint8
    for at in ((0, 0, 0), (6, 9, 8), (3, 5, 2)):
        first = np.array(at) * (2, 2, 1) + (2, 4, 0)
        block = data[first[0] : first[0] + 2, first[1] : first[1] + 2, first[2]]
        value = (float(block.mean()) - 100) / 200
        assert float(image.get_fdata()[at]) == pytest.approx(value, abs=0.5 / 127 + 1e-6)
        middle = affine @ [first[0] + 0.5, first[1] + 0.5, first[2], 1]
        np.testing.assert_allclose(image.affine @ [*at, 1], middle, atol=1e-4)
    assert (float(image.header["cal_min"]), float(image.header["cal_max"])) == pytest.approx((0.1, 0.9))
    assert packed == thumbnail(data, affine, box, 100.0, 300.0, (0.1, 0.9))


def test_odd_volumes_stay_small_and_finite():
    wide = np.zeros((300, 200, 40), np.float32)
    image = loaded(thumbnail(wide, np.diag([5.0, 5, 5, 1]), [(0, 300), (0, 200), (0, 40)], 0, 1, (0, 1)))
    assert np.prod(image.shape) <= MOST_VOXELS
    broken = np.full((4, 4, 4), np.nan, np.float32)
    image = loaded(thumbnail(broken, np.diag([0.01, 2, 2, 1]), [(0, 4), (1, 2), (0, 4)], 0, 0, (0, 1)))
    assert image.shape == (1, 1, 4) and not image.get_fdata().any()


# Edges of eight boxes along axes that 8 does not divide: the nearest voxel to every eighth of the axis.
EDGES = {
    13: [0, 2, 3, 5, 6, 8, 10, 11, 13],
    30: [0, 4, 8, 11, 15, 19, 22, 26, 30],
    64: [0, 8, 16, 24, 32, 40, 48, 56, 64],
    8: [0, 1, 2, 3, 4, 5, 6, 7, 8],
}


@pytest.mark.parametrize("shape", [(64, 64, 64), (13, 8, 30)])
def test_blocks_are_means(shape):
    grid = np.random.default_rng(1).random(shape).astype(np.float32)
    means = block_means(grid)
    found = np.frombuffer(blocks(grid), np.uint8).reshape(8, 8, 8)
    assert means.dtype == np.float32
    for at in np.ndindex(8, 8, 8):
        part = grid[tuple(slice(EDGES[n][i], EDGES[n][i + 1]) for i, n in zip(at, shape, strict=True))]
        assert means[at] == pytest.approx(part.mean(dtype=np.float64), abs=1e-6)
        assert abs(int(found[at]) - 255 * float(part.mean())) <= 0.51


def test_block_means_of_several_grids_and_of_short_axes():
    grids = np.random.default_rng(2).random((2, 3, 16, 4, 9)).astype(np.float32)
    found = block_means(grids, 4)
    assert found.shape == (2, 3, 4, 4, 4)
    wanted = grids[1, 2, 4:8, 3, 2:4].mean()  # 9 voxels in 4: edges 0, 2, 4, 7, 9
    assert found[1, 2, 1, 3, 1] == pytest.approx(wanted, abs=1e-6)
    flat = block_means(np.arange(3, dtype=np.float32).reshape(1, 1, 3))
    assert flat.shape == (8, 8, 8) and (flat == flat[0, 0]).all()
    assert set(flat[0, 0].tolist()) == {0.0, 1.0, 2.0} and (np.diff(flat[0, 0]) >= 0).all()
    broken = np.full((8, 8, 8), np.nan, np.float32)
    assert blocks(broken) == bytes(512)


@pytest.mark.parametrize(
    ("volume", "means"), [(b"PK", bytes(512)), (b"", b""), (b"\x1f\x8b" * 2**20, bytes(512))]
)
def test_what_is_none_is_refused(volume, means):
    with pytest.raises(ValueError, match="not"):
        check(volume, means)
    check(b"", bytes(512))


def test_an_axial_slice_is_the_one_through_a_place():
    data = np.zeros((40, 44, 36), np.float32)
    data[4:36, 4:40, 20:22] = 2.0  # one slice of the small volume, from z = 110 to 112 mm
    data[4:20, 4:40, 20:22] = 4.0  # its left half
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = 10, 20, 90
    volume = thumbnail(data, affine, [(0, 40), (0, 44), (0, 36)], 0.0, 4.0, (0.1, 0.9))
    cut, mm, window = axial_slice(volume, (0.0, 0.0, 110.5))
    assert cut.shape == (20, 22) and mm == (2.0, 2.0) and window == pytest.approx((0.1, 0.9))
    assert cut[5, 10] == 1.0 and cut[14, 10] == pytest.approx(0.5, abs=0.005) and cut[0, 0] == 0.0
    assert not axial_slice(volume, (0.0, 0.0, 107.0))[0].any()
    assert not axial_slice(volume, (0.0, 0.0, 1e6))[0].any()


@pytest.mark.parametrize("volume", [b"", b"\x1f\x8bno", b"\x1f\x8b" + bytes(400)])
def test_a_slice_of_what_is_no_small_volume(volume):
    with pytest.raises(HzError):
        axial_slice(volume, (0.0, 0.0, 0.0))
