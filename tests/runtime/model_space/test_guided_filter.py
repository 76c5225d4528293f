"""The guided filter against its closed form and a brute-force second implementation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from hz_runtime.errors import GridMismatch
from hz_runtime.model_space.guided_filter import guided_coefficients, native_harmonized
from hz_runtime.model_space.recipe import Recipe, to_model_space


def brute_force(source, target, eps):
    """He et al. 2013, eqs. 5, 6 and 8, a window at a time."""
    pad = [(1, 1)] * 3
    s, t = np.pad(source, pad, "edge").astype(float), np.pad(target, pad, "edge").astype(float)
    a, b = np.zeros(source.shape), np.zeros(source.shape)
    for i, j, k in np.ndindex(source.shape):
        ws, wt = s[i : i + 3, j : j + 3, k : k + 3], t[i : i + 3, j : j + 3, k : k + 3]
        a[i, j, k] = ((ws * wt).mean() - ws.mean() * wt.mean()) / (ws.var() + eps)
        b[i, j, k] = wt.mean() - a[i, j, k] * ws.mean()
    means = []
    for c in (a, b):
        p = np.pad(c, pad, "edge")
        means.append([p[i : i + 3, j : j + 3, k : k + 3].mean() for i, j, k in np.ndindex(source.shape)])
    return (np.reshape(m, source.shape) for m in means)


def test_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    source = rng.random((7, 6, 8)).astype(np.float32)
    target = (0.5 * source**2 + 0.1 * rng.random(source.shape)).astype(np.float32)
    for got, wanted in zip(
        guided_coefficients(source, target), brute_force(source, target, 1e-4), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_affine_map_is_found():
    source = np.random.default_rng(1).random((12, 12, 12)).astype(np.float32)
    a, b = guided_coefficients(source, 0.6 * source + 0.2, eps=1e-8)
    np.testing.assert_allclose(a, 0.6, atol=1e-3)
    np.testing.assert_allclose(b, 0.2, atol=1e-3)


def test_shapes_must_match():
    with pytest.raises(GridMismatch, match="share a grid"):
        guided_coefficients(np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 5), np.float32))


def test_native_undoes_a_known_contrast(brain):
    """The scan through a linear intensity change: applied at 64^3, read back at full resolution."""
    volume = brain()
    prepared = to_model_space(volume, Recipe())
    native = native_harmonized(volume, prepared, 0.5 * prepared.grid + 0.1 * (prepared.grid > 0.05))
    scaled = (volume.data - prepared.low) / (prepared.high - prepared.low)
    deep = scaled > 0.3
    wanted = np.clip(0.5 * scaled + 0.1, 0, 1)
    assert np.abs(native - wanted)[deep].mean() < 0.02
    assert not native[volume.data == 0].any()
    assert native.shape == volume.data.shape
    assert native.dtype == np.float32


def test_native_is_the_local_map_of_each_voxel(brain):
    """Longhand at full resolution: interpolated coefficients, scaled, clipped, and zero in the air."""
    volume = brain()
    prepared = to_model_space(volume, Recipe())
    harmonized = np.sqrt(prepared.grid)
    coefficients = guided_coefficients(prepared.grid, harmonized)
    to_grid = np.linalg.inv(prepared.grid_affine) @ volume.affine
    coords = np.tensordot(to_grid[:3, :3], np.indices(volume.shape), 1) + to_grid[:3, 3][:, None, None, None]
    a, b = (map_coordinates(c, coords, order=1, mode="nearest") for c in coefficients)
    scaled = (volume.data - prepared.low) / (prepared.high - prepared.low)
    wanted = np.where(volume.data > 0, np.clip(a * scaled + b, 0, 1), 0)
    np.testing.assert_allclose(native_harmonized(volume, prepared, harmonized), wanted, atol=1e-5)
