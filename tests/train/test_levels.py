"""Levels of a brain: what moves with fluid and what does not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from hz_train.levels import at_level, grey_white, mean_level, white_level


def brain(fluid: int, gain: float = 1.0) -> np.ndarray:
    """(24, 24, 24) of white .6, grey .45 and `fluid` planes of .15, with a little noise."""
    volume = np.zeros((24, 24, 24), np.float32)
    volume[2:22, 2:22, 2:12] = 0.6
    volume[2:22, 2:22, 12:22] = 0.45
    volume[2:22, 2:22, 12 : 12 + fluid] = 0.15
    noise = np.random.default_rng(fluid).normal(0, 0.01, volume.shape)
    return np.where(volume > 0, gain * (volume + noise), 0).astype(np.float32)


def test_the_level_of_white_matter_does_not_follow_the_fluid() -> None:
    young, old = brain(1), brain(6)
    assert white_level(young) == pytest.approx(0.6, abs=0.005)
    assert white_level(old) == pytest.approx(0.6, abs=0.005)
    assert mean_level(old) < mean_level(young) - 0.05


def test_volumes_come_to_one_level() -> None:
    both = np.stack([brain(2), brain(4, gain=0.8)])
    for measure in (mean_level, white_level):
        levels = [measure(volume) for volume in at_level(both, 0.5, measure)]
        assert levels == pytest.approx([0.5, 0.5], abs=1e-3)


def test_grey_to_white_is_of_the_tissues_of_the_scan_it_was_made_from() -> None:
    scan = brain(3)
    assert grey_white(scan, scan) == pytest.approx(0.75, abs=0.01)
    flat = np.where(scan > 0.5, scan - 0.1, scan)  # white matter 0.5: the ratio is 0.9
    assert grey_white(flat, scan) == pytest.approx(0.9, abs=0.01)
