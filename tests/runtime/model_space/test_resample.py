"""Resampling against closed form and against scipy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from hz_runtime.model_space.resample import (
    axis_weights,
    bounding_box,
    more_than_half,
    near_box,
    resample,
    scaled_affine,
    trilinear,
    upsampled_slabs,
)


def smooth(shape, sigma=4.0, seed=0):
    return gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma).astype(np.float32)


def test_same_box_after_scaling():
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -90, -126, -72
    new = scaled_affine((91, 109, 91), affine, (64, 64, 64))
    for corner in ([-0.5] * 3, [90.5, 108.5, 90.5]):
        ratio = np.array([64 / 91, 64 / 109, 64 / 91])
        moved = (np.array(corner) + 0.5) * ratio - 0.5
        np.testing.assert_allclose(new[:3, :3] @ moved + new[:3, 3], affine[:3, :3] @ corner + affine[:3, 3])


def test_identity_returns_the_same_voxels():
    data = smooth((20, 24, 18))
    np.testing.assert_allclose(resample(data, np.eye(4), data.shape, np.eye(4)), data, atol=1e-6)


@pytest.mark.parametrize(
    "scale,off", [(0.3, 1e-5), (0.77, 1e-5), (1.0, 1e-5), (2.0, 1e-5), (1.42, 0.1), (3.4, 0.1)]
)
def test_weights_reproduce_a_line(scale, off):
    """A ramp comes back as a ramp, away from the edges.

    Exactly so when enlarging or for whole factors; a triangle of fractional width, sampled at whole
    voxels, is off by less than a tenth of one.
    """
    weights = axis_weights(60, 8, scale, 20.0)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert np.abs(weights @ np.arange(60) - (scale * np.arange(8) + 20)).max() < max(off, 1e-4 * 30)


def test_shrinking_does_not_alias():
    """The finest detail a grid holds vanishes on one three times coarser and does not turn up as waves."""
    stripes = np.broadcast_to((np.arange(90) % 2).astype(np.float32)[:, None, None], (90, 8, 8)).copy()
    coarse = resample(stripes, np.eye(4), (29, 8, 8), np.diag([3.0, 1, 1, 1]))
    np.testing.assert_allclose(coarse[2:-2], 0.5, atol=0.06)


@pytest.mark.parametrize("spacing", [0.55, 0.6, 0.7, 0.8, 0.868, 0.9, 0.95, 1.0, 1.3])
def test_an_oblique_constant_stays_constant(spacing):
    """Turned by 7 degrees, voxels of any size: where the field of view reaches, 1 is 1."""
    n = round(60 / spacing)
    turn = np.array([[np.cos(0.12), -np.sin(0.12), 0], [np.sin(0.12), np.cos(0.12), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ np.full(3, (n - 1) / 2)
    wanted = np.diag([2.0, 2, 2, 1])
    wanted[:3, 3] = -17.0
    np.testing.assert_allclose(
        resample(np.ones((n,) * 3, np.float32), affine, (18,) * 3, wanted), 1, atol=1e-5
    )


def test_enlarging_equals_linear_interpolation():
    data = smooth((16, 12, 10), 2)
    new = np.diag([0.5, 0.5, 0.5, 1])
    new[:3, 3] = 1.25, 2.0, 1.5
    wanted = np.indices((20, 10, 8)) * 0.5 + np.array([1.25, 2.0, 1.5])[:, None, None, None]
    reference = map_coordinates(data, wanted, order=1)
    np.testing.assert_allclose(resample(data, np.eye(4), (20, 10, 8), new), reference, atol=1e-5)


def test_oblique_agrees_with_interpolating_the_truth():
    """A smooth function of world space, sampled on a tilted grid and brought back, is that function."""
    angle = np.deg2rad(17)
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    tilt[:3, 3] = -24, -30, -20

    def truth(affine, shape):
        x, y, z = np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3][:, None, None, None]
        return np.exp(-(x**2 + 0.5 * y**2 + (z - 3) ** 2) / 120).astype(np.float32)

    wanted = np.diag([2.0, 2, 2, 1])
    wanted[:3, 3] = -16, -16, -14
    result = resample(truth(tilt, (60, 60, 40)), tilt, (16, 16, 14), wanted)
    assert np.abs(result - truth(wanted, (16, 16, 14))).max() < 0.02


@pytest.mark.parametrize("shape", [(64, 64, 64), (50, 70, 60)])
def test_a_turn_about_the_grids_diagonal_is_a_turn(shape):
    """It leaves the first and the last voxel where they are, and moves others by half a voxel."""
    axis = np.asarray(shape) / np.linalg.norm(shape)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_rotvec(np.deg2rad(0.7) * axis).as_matrix()
    data = np.asfortranarray(np.indices(shape)[0], np.float32)  # a ramp: linear interpolation keeps it
    world = np.tensordot(turned[:3, :3], np.indices(shape), 1)
    inner = tuple(slice(4, n - 4) for n in shape)
    assert np.abs(world[0] - data)[inner].max() > 0.3
    np.testing.assert_allclose(resample(data, np.eye(4), shape, turned)[inner], world[0][inner], atol=1e-3)
    (both,) = [
        np.concatenate(parts, axis=2)
        for parts in zip(
            *(values for _, values in upsampled_slabs([data], np.eye(4), shape, turned)), strict=True
        )
    ]
    np.testing.assert_allclose(both[inner], world[0][inner], atol=1e-3)


def test_resampling_is_the_product_of_the_three_matrices():
    """Leaving out the zeros of a matrix leaves out nothing: longhand, in float64."""
    data = np.random.default_rng(2).standard_normal((70, 61, 83)).astype(np.float32)
    new = np.diag([2.3, 1.9, 2.8, 1])
    new[:3, 3] = -9, 4, -20  # begins before the scan and ends after it
    matrices = (axis_weights(n, 41, new[k, k], new[k, 3]).astype(float) for k, n in enumerate(data.shape))
    wanted = np.einsum("ijk,xi,yj,zk->xyz", data, *matrices, optimize=True)
    assert not wanted[:, :, :6].any()
    np.testing.assert_allclose(resample(data, np.eye(4), (41, 41, 41), new), wanted, atol=1e-5)


def test_trilinear_agrees_with_scipy_also_on_a_single_slice():
    rng = np.random.default_rng(3)
    for shape in [(7, 9, 11), (7, 1, 11), (1, 1, 1)]:
        data = rng.standard_normal(shape).astype(np.float32)
        coords = rng.uniform(-2, 12, (3, 500))
        wanted = map_coordinates(data, coords, order=1, mode="nearest")
        np.testing.assert_allclose(trilinear(data, coords), wanted, atol=1e-5)


def test_bounding_box_holds_every_voxel_and_no_plane_more():
    mask = np.zeros((9, 8, 7), bool)
    assert [s.stop - s.start for s in bounding_box(mask)] == [0, 0, 0]
    mask[2, 6, 1] = mask[5, 3, 4] = True
    for order in "CF":
        assert bounding_box(np.array(mask, order=order)) == (slice(2, 6), slice(3, 7), slice(1, 5))


def test_outside_is_zero():
    far = np.eye(4)
    far[:3, 3] = 500
    assert not resample(np.ones((8, 8, 8), np.float32), np.eye(4), (8, 8, 8), far).any()


@pytest.mark.parametrize("degrees", [0.0, 12.0])
def test_slabs_put_a_line_in_world_space_back(degrees):
    """Coefficients linear in world mm come back as that line on any fine grid, straight or tilted."""
    angle = np.deg2rad(degrees)
    fine = np.eye(4)
    fine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    fine[:3, 3] = 8, 14, 9
    coarse = np.diag([3.0, 3, 3, 1])

    def line(affine, shape):
        x, y, z = np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3][:, None, None, None]
        return (0.1 * x - 0.2 * y + 0.3 * z).astype(np.float32)

    shape = (20, 18, 21)
    whole = np.empty(shape, np.float32)
    for part, (values,) in upsampled_slabs([line(coarse, (16, 16, 16))], coarse, shape, fine):
        whole[:, :, part] = values
    inner = (slice(3, -3),) * 3  # beyond the outermost coarse centres there is only the edge value
    np.testing.assert_allclose(whole[inner], line(fine, shape)[inner], atol=1e-3)


@pytest.mark.parametrize("degrees", [0.0, 12.0])
def test_slabs_of_a_box_are_those_voxels_of_the_whole(degrees):
    angle = np.deg2rad(degrees)
    fine = np.eye(4)
    fine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    coarse, shape = np.diag([3.0, 3, 3, 1]), (20, 18, 21)
    volumes = [smooth((8, 8, 8), 1, seed) for seed in (0, 1)]
    box = (slice(3, 17), slice(0, 5), slice(4, 21))
    whole, part = np.empty((2, *shape), np.float32), np.empty((2, 14, 5, 17), np.float32)
    for at, values in upsampled_slabs(volumes, coarse, shape, fine):
        whole[..., at] = values
    for at, values in upsampled_slabs(volumes, coarse, shape, fine, box):
        part[..., at] = values
    np.testing.assert_allclose(part, whole[:, box[0], box[1], box[2]], atol=1e-6)


def turned(degrees: float, spacing: float, origin: float) -> np.ndarray:
    """(4, 4): voxels of one size, turned about an oblique axis."""
    affine = np.eye(4)
    axis = np.deg2rad(degrees) * np.array([0.6, 0.0, 0.8])
    affine[:3, :3] = spacing * Rotation.from_rotvec(axis).as_matrix()
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize("degrees", [0.0, 12.0])
@pytest.mark.parametrize("spacing", [0.7, 1.9])
def test_what_is_not_wanted_is_zero_and_changes_nothing_else(degrees, spacing):
    data = np.asfortranarray(np.random.default_rng(5).random((40, 44, 48)), np.float32)
    grid = (30, 31, 32), turned(degrees, spacing, -4.0)
    whole = resample(data, np.eye(4), *grid)
    for where in (whole > 0.6, np.zeros(grid[0], bool), np.ones(grid[0], bool)):
        part = resample(data, np.eye(4), *grid, where)
        assert part.flags.f_contiguous and part.dtype == np.float32
        np.testing.assert_allclose(part, np.where(where, whole, 0), atol=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 12.0])
@pytest.mark.parametrize("spacing", [0.45, 1.3])
def test_a_mask_by_its_edge_is_the_mask_by_every_voxel(degrees, spacing):
    i, j, k = np.indices((24, 26, 22)) - 11.5
    ball = (np.clip(9.5 - np.sqrt(i**2 + j**2 + 1.2 * k**2), 0, 1) * 8).round() / 8
    grid = (50, 52, 48), turned(degrees, spacing, -3.0)
    soft = ball.astype(np.float32)
    for volume in (soft, np.zeros_like(soft), np.ones_like(soft)):
        np.testing.assert_array_equal(
            more_than_half(volume, np.eye(4), *grid), resample(volume, np.eye(4), *grid) > 0.5
        )


@pytest.mark.parametrize("spacing", [0.5, 0.7])
def test_a_flat_face_of_a_mask_is_kept_whole_on_a_fine_grid(spacing):
    """Where the face lies near the far end of its cell of 2 mm, up to four voxels from the near one."""
    soft = np.zeros((9, 10, 11), np.float32)
    soft[2:7, 2:8, 2:9] = 0.48
    soft[3:6, 3:7, 3:8] = 1
    coarse, grid = np.diag([2.0, 2.0, 2.0, 1.0]), ((44, 44, 44), turned(0.6, spacing, 0.0))
    expected = resample(soft, coarse, *grid) > 0.5
    assert expected.any()
    np.testing.assert_array_equal(more_than_half(soft, coarse, *grid), expected)


@pytest.mark.parametrize("spacing", [0.7, 2.5])
def test_a_volume_reaches_no_farther_than_its_box(spacing):
    grid = (40, 40, 40), turned(20.0, spacing, -20.0)
    for shape in ((9, 10, 12), (9, 10, 2)):
        reached = resample(np.ones(shape, np.float32), np.eye(4), *grid) > 0
        near = near_box(shape, np.eye(4), *grid)
        assert reached.any() and not (reached & ~near).any() and not near.all()


def test_a_mask_is_turned_without_a_copy_of_it_in_float32():
    mask = np.zeros((128, 128, 128), np.bool_, order="F")
    mask[40:90, 30:100, 35:95] = True
    grid = (32, 32, 32), turned(12.0, 3.0, -4.0)
    near = np.ones(grid[0], np.bool_, order="F")
    tracemalloc.start()
    try:
        found = resample(mask, np.eye(4), *grid, near)
        assert tracemalloc.get_traced_memory()[1] < 0.8 * 4 * mask.size
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, resample(mask.astype(np.float32), np.eye(4), *grid, near))
