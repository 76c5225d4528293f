"""Levels of a brain: what moves with fluid and what does not."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.errors import NoBrain
from hz_runtime.model_space.levels import at_level, white_level


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
    mean_young, mean_old = (volume[volume > 0.05].mean() for volume in (young, old))
    assert mean_old < mean_young - 0.05
    with pytest.raises(NoBrain, match="is empty"):
        white_level(np.zeros((8, 8, 8), np.float32))


def test_volumes_come_to_one_level() -> None:
    both = np.stack([brain(2), brain(4, gain=0.8)])
    assert [white_level(volume) for volume in at_level(both, 0.5)] == pytest.approx([0.5, 0.5], abs=1e-3)
    means = [volume[volume > 0].mean() for volume in at_level(both, 0.4, lambda v: float(v[v > 0].mean()))]
    assert means == pytest.approx([0.4, 0.4], abs=1e-3)
