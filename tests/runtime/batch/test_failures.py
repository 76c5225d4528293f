"""Whose fault a failure is: only the scan's own takes its earlier result away."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.backends.base import EngineFailure, check_batch
from hz_runtime.batch.failures import blames_the_scan
from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.errors import GridMismatch, NoBrain, NonFiniteInput

SPEC = TensorSpec("volume", ("N", 1, 4, 4, 4), "float32")


def test_a_batch_of_another_shape_is_neither_the_scans_nor_an_engines_fault() -> None:
    with pytest.raises(GridMismatch) as caught:
        check_batch(np.zeros((1, 1, 4, 4, 3), np.float32), SPEC)
    assert caught.value.exit_code == 2  # 5 stands for an engine that is missing
    assert not blames_the_scan(caught.value)


def test_a_scan_that_is_not_finite_is_at_fault() -> None:
    batch = np.zeros((2, 1, 4, 4, 4), np.float32)
    batch[1, 0, 0, 0, 0] = np.inf
    with pytest.raises(NonFiniteInput) as caught:
        check_batch(batch, SPEC)
    assert caught.value.exit_code == 3
    assert blames_the_scan(caught.value)


def test_engines_and_memory_are_not_the_scans_fault() -> None:
    assert blames_the_scan(NoBrain("empty"))
    assert not blames_the_scan(EngineFailure("lost"))
    short = NoBrain("too large")
    short.__cause__ = MemoryError()
    assert not blames_the_scan(short)
