"""Grey against white matter, by the tissues of the scan it was made from."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from hz_train.levels import grey_white, mean_level


def brain() -> np.ndarray:
    """(24, 24, 24) of white .6, grey .45 and fluid .15, with a little noise."""
    volume = np.zeros((24, 24, 24), np.float32)
    volume[2:22, 2:22, 2:12] = 0.6
    volume[2:22, 2:22, 12:22] = 0.45
    volume[2:22, 2:22, 12:15] = 0.15
    noise = np.random.default_rng(0).normal(0, 0.01, volume.shape)
    return np.where(volume > 0, volume + noise, 0).astype(np.float32)


def test_grey_to_white_is_of_the_tissues_of_the_scan_it_was_made_from() -> None:
    scan = brain()
    assert grey_white(scan, scan) == pytest.approx(0.75, abs=0.01)
    flat = np.where(scan > 0.5, scan - 0.1, scan)  # white matter 0.5: the ratio is 0.9
    assert grey_white(flat, scan) == pytest.approx(0.9, abs=0.01)
    assert mean_level(scan) == pytest.approx(scan[scan > 0].mean(), abs=1e-4)
