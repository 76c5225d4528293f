"""SSIM and errors against closed forms, and against scikit-image where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.errors import GridMismatch
from hz_train.studies.similarity import mean_absolute_error, ssim, ssim_map

C1, C2 = 0.01**2, 0.03**2


@pytest.fixture
def noise():
    return np.random.default_rng(0).random((20, 22, 18)).astype(np.float32)


def test_identical_volumes(noise):
    everywhere = np.ones(noise.shape, bool)
    assert ssim(noise, noise, everywhere) == pytest.approx(1, abs=1e-9)
    assert mean_absolute_error(noise, noise, everywhere) == 0


@pytest.mark.parametrize(("level", "shift"), [(0.3, 0.2), (0.5, -0.1), (0.0, 0.4)])
def test_a_flat_volume_shifted(level, shift):
    """No variance anywhere: (2 m m' + C1) / (m^2 + m'^2 + C1)."""
    a = np.full((16, 16, 16), level, np.float32)
    wanted = (2 * level * (level + shift) + C1) / (level**2 + (level + shift) ** 2 + C1)
    np.testing.assert_allclose(ssim_map(a, a + np.float32(shift)), wanted, rtol=1e-5)


def test_a_shift_touches_the_means_alone_and_a_gain_the_rest(noise):
    """With y = x + c, variances and covariance are equal, and only the first factor is left."""
    from scipy.ndimage import gaussian_filter

    x = noise.astype(np.float64)
    mean = gaussian_filter(x, 1.5, truncate=3.5)
    wanted = (2 * mean * (mean + 0.2) + C1) / (mean**2 + (mean + 0.2) ** 2 + C1)
    np.testing.assert_allclose(ssim_map(noise, noise + np.float32(0.2)), wanted, atol=1e-5)
    variance = gaussian_filter(x * x, 1.5, truncate=3.5) - mean**2
    gain = (4 * mean**2 + C1) * (4 * variance + C2) / ((5 * mean**2 + C1) * (5 * variance + C2))
    np.testing.assert_allclose(ssim_map(noise, 2 * noise), gain, atol=1e-5)


def test_the_window_by_hand(noise):
    """The middle voxel, with an 11^3 Gaussian window summed explicitly."""
    a, b = noise, np.roll(noise, 1, 0)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    line /= line.sum()
    window = line[:, None, None] * line[None, :, None] * line[None, None, :]
    cut = tuple(slice(n // 2 - 5, n // 2 + 6) for n in a.shape)
    x, y = a[cut].astype(np.float64), b[cut].astype(np.float64)
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
    cov = (window * (x - mx) * (y - my)).sum()
    wanted = (2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))
    assert ssim_map(a, b)[tuple(n // 2 for n in a.shape)] == pytest.approx(wanted, abs=1e-9)


def test_against_scikit_image(noise):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    b = np.clip(0.8 * noise + 0.1 * np.roll(noise, 1, 1), 0, 1)
    _, wanted = metrics.structural_similarity(
        noise.astype(float), b.astype(float), full=True, data_range=1.0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    np.testing.assert_allclose(ssim_map(noise, b), wanted, atol=1e-6)


def test_only_the_mask_counts(noise):
    mask = np.zeros(noise.shape, bool)
    mask[5:9, 5:9, 5:9] = True
    worse = noise.copy()
    worse[~mask] += 1
    assert mean_absolute_error(noise, worse, mask) == 0
    assert mean_absolute_error(noise, noise + np.float32(0.25), mask) == pytest.approx(0.25, abs=1e-6)


def test_unequal_grids_are_refused(noise):
    with pytest.raises(GridMismatch):
        ssim_map(noise, noise[1:])
