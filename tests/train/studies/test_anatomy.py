"""Anatomy measures against phantoms whose anatomy is known, and against real tissue maps."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from hz_runtime.errors import GridMismatch, NoBrain
from hz_train.studies.anatomy import (
    dice,
    edge_correlation,
    kept,
    kept_of_labels,
    otsu_thresholds,
    percent_change,
    surface,
    surface_distance,
    tissue_volumes,
    tissues,
)

LEVELS = np.array([0.0, 0.25, 0.55, 0.85], np.float32)  # air, CSF, grey, white


def ball(radius: float, size: int = 48, centre: tuple[float, float, float] | None = None) -> np.ndarray:
    middle = centre or ((size - 1) / 2,) * 3
    grid = np.indices((size,) * 3) - np.reshape(middle, (3, 1, 1, 1))
    return np.linalg.norm(grid, axis=0) <= radius


def phantom(white: float = 11) -> np.ndarray:
    """(48, 48, 48) labels: CSF to radius 20, grey to 17, white to 11 with a ventricle of 3 inside."""
    labels = ball(20).astype(np.uint8)
    labels[ball(17)] = 2
    labels[ball(white)] = 3
    labels[ball(3)] = 1
    return labels


def scan(labels: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    volume = LEVELS[labels] + noise * rng.standard_normal(labels.shape).astype(np.float32)
    return np.where(labels > 0, volume, 0).astype(np.float32)


def test_thresholds_are_the_best_of_all():
    """Against the definition: every pair of thresholds tried, within-class variance least."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(m, s, n) for m, s, n in ((0.2, 0.05, 300), (0.5, 0.06, 500), (0.8, 0.04, 400))]
    values = np.concatenate(parts).astype(np.float32)
    bins = 24
    low, high = otsu_thresholds(values, bins)
    edges = np.linspace(*np.percentile(values, [0.1, 99.9]), bins + 1)
    clipped = np.clip(values, edges[0], edges[-1])
    centres = (edges[1:] + edges[:-1]) / 2
    binned = centres[np.clip(np.searchsorted(edges, clipped, "right") - 1, 0, bins - 1)]

    def within(a: float, b: float) -> float:
        classes = [binned[binned < a], binned[(binned >= a) & (binned < b)], binned[binned >= b]]
        return sum(float(((c - c.mean()) ** 2).sum()) for c in classes if c.size)

    best = min(within(a, b) for a, b in combinations(edges[1:-1], 2))
    assert within(low, high) == pytest.approx(best, rel=1e-9)


def test_tissue_volumes_of_a_clean_phantom_are_exact():
    labels = phantom()
    found = tissues(scan(labels), labels > 0)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(tissue_volumes(found), [(labels == k).sum() for k in (1, 2, 3)])


@pytest.mark.parametrize("gain, offset", [(0.5, 0.0), (1.0, 0.2), (3.0, -0.7)])
def test_tissues_do_not_depend_on_gain_and_offset(gain, offset):
    labels = phantom()
    volume = scan(labels, noise=0.05)
    moved = (gain * volume + offset).astype(np.float32)
    same = tissues(moved, labels > 0) == tissues(volume, labels > 0)
    assert same.mean() > 0.9999  # a voxel on a bin's edge may fall on either side


def test_noise_at_a_sixth_of_the_contrast_moves_volumes_by_less_than_one_percent():
    labels = phantom()
    found = tissue_volumes(tissues(scan(labels, noise=0.05), labels > 0))
    change = percent_change(found, tissue_volumes(labels))
    assert (np.abs(change) < 1).all(), change


def test_a_smaller_white_matter_is_noticed():
    labels, shrunk = phantom(11), phantom(10)
    found = kept(scan(shrunk), scan(labels), labels > 0)
    wanted = percent_change(tissue_volumes(shrunk), tissue_volumes(labels))
    np.testing.assert_allclose(found.change, wanted)
    assert found.change[2] < -20 and found.boundary == pytest.approx(1, abs=0.2)
    assert found.white_dice == pytest.approx(dice(shrunk == 3, labels == 3))
    assert kept_of_labels(scan(shrunk), labels).change == pytest.approx(wanted)


def test_an_unchanged_scan_keeps_everything():
    labels = phantom()
    found = kept(scan(labels, 0.03), scan(labels, 0.03), labels > 0)
    assert (found.change == 0).all() and found.boundary == 0
    assert found.white_dice == 1 and found.edges == pytest.approx(1)


@pytest.mark.parametrize("by", [0, 1, 2, 4])
def test_surfaces_of_concentric_balls_are_apart_by_the_difference_of_radii(by):
    distance = surface_distance(ball(10), ball(10 + by))
    assert distance == pytest.approx(by, abs=0.25 if by else 0)


def test_surface_distance_against_all_pairs():
    a, b = ball(5, 20), ball(5, 20, (11, 10, 8))
    p, q = np.argwhere(surface(a)), np.argwhere(surface(b))
    gaps = np.linalg.norm(p[:, None] - q[None], axis=2)
    wanted = np.concatenate([gaps.min(axis=1), gaps.min(axis=0)]).mean()
    assert surface_distance(a, b) == pytest.approx(wanted)
    assert surface_distance(a, b) == surface_distance(b, a)


def test_dice_of_boxes():
    a, b = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    a[:6], b[3:] = True, True
    assert dice(a, b) == pytest.approx(2 * 300 / (600 + 700))


def test_edges_ignore_gain_and_offset_but_not_blur_and_other_heads():
    from scipy.ndimage import gaussian_filter

    labels = phantom()
    volume, mask = scan(labels, 0.05), labels > 0
    assert edge_correlation(volume, 3 * volume - 0.5, mask) == pytest.approx(1)
    blurred = edge_correlation(volume, gaussian_filter(volume, 2).astype(np.float32), mask)
    other = edge_correlation(volume, np.random.default_rng(1).random(mask.shape).astype(np.float32), mask)
    assert other < 0.2 < blurred < 0.95
    assert np.isnan(edge_correlation(volume, np.ones_like(volume), mask))


def test_what_cannot_be_compared_is_refused():
    labels = phantom()
    with pytest.raises(GridMismatch):
        tissues(scan(labels), (labels > 0)[1:])
    with pytest.raises(GridMismatch):
        surface_distance(labels > 0, (labels > 0)[1:])
    with pytest.raises(NoBrain):
        tissues(np.ones_like(labels, np.float32), labels > 0)
    assert np.isnan(surface_distance(labels > 0, labels > 9))


def test_real_tissue_maps_agree(scans):
    """OASIS scans on the prepared grid, against the maps that came with them (another program's)."""
    from hz_runtime.io.volume import read_volume
    from hz_runtime.model_space.recipe import Recipe, to_model_space
    from hz_train.cohort import Scan
    from hz_train.studies.baselines import foreground
    from hz_train.studies.truth import label_map

    folder = scans / "real_cohort_2mm"
    for name in ("oasis_1000", "oasis_1002"):
        path = folder / f"{name}_T1w.nii.gz"
        labels = label_map(
            Scan(path, name, "oasis1", None, "n/a", "n/a", labels=folder / f"{name}_tissues.nii.gz"), Recipe()
        )
        grid = to_model_space(read_volume(path), Recipe()).grid
        mask = foreground(grid) & (labels > 0)
        assert dice(mask, labels > 0) > 0.95  # the map lies on the scan
        inside = np.where(mask, labels, 0).astype(np.uint8)
        assert kept_of_labels(grid, inside).white_dice > 0.85
        assert np.abs(kept_of_labels(grid, inside).change).max() < 10
