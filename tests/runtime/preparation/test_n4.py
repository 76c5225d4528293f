"""N4 against a field that is known."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from hz_runtime.errors import NoBrain, UsageError
from hz_runtime.preparation.n4 import corrected


@pytest.fixture
def phantom():
    """Two tissues in a ball of 60 mm, 3 mm voxels, and a tilted field of +-25 %."""
    size = 48
    i, j, k = np.indices((size,) * 3, np.float32) - (size - 1) / 2
    radius = np.sqrt(i**2 + j**2 + k**2)
    folds = np.sin(i / 2) * np.sin(j / 2) * np.sin(k / 2) > 0
    clean = np.where(radius < 20, np.where(folds, 1000, 700), 0).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 10, clean.shape).astype(np.float32)
    field = np.exp(0.25 * (i + 0.5 * j) / 25).astype(np.float32)
    return (clean + noise * (clean > 0)) * field, clean, field, np.diag([3.0, 3, 3, 1])


def test_takes_a_known_field_out(phantom):
    pytest.importorskip("niimath")
    seen, clean, field, affine = phantom
    out = corrected(seen, affine)
    assert out.dtype == np.float32
    assert out.shape == seen.shape
    inside = clean > 0
    left = np.log(out[inside] / clean[inside])
    assert np.std(left - left.mean()) < 0.35 * np.std(np.log(field[inside]))
    assert not out[~inside].any()


def test_an_empty_scan_is_refused():
    with pytest.raises(NoBrain):
        corrected(np.zeros((8, 8, 8), np.float32), np.eye(4))


def test_without_niimath_it_says_what_to_install(phantom, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "niimath":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError) as error:
        corrected(phantom[0], phantom[3])
    assert "hz-mri[prep]" in error.value.remedy
