"""What the registration reads of a scan does not hang on the scan's unit."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.preparation.registration import in_steps


@pytest.mark.parametrize(("factor", "offset"), [(0.01, 0.0), (1e4, 0.0), (1.0, 500.0), (1 / 37.3, -1.7)])
def test_scaled_and_shifted_copies_are_read_alike(factor: float, offset: float) -> None:
    """To the last voxel, where in float32 they differ in the seventh digit."""
    scan = np.random.default_rng(0).integers(0, 256, (30, 30, 30)).astype(np.float32)
    scan[:10] = 0
    copy = scan * np.float32(factor) + np.float32(offset)
    np.testing.assert_array_equal(in_steps(copy), in_steps(scan))
    assert in_steps(scan).min() == 0
    assert 300 < in_steps(scan).max() < 350
