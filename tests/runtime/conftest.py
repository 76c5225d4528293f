"""Made-up brains for the runtime's tests."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.recipe import Recipe


def make_brain(move=(0.0, 0.0, 0.0), scale=1.0, noise=0.02, fill=None, shrink=1.0, spacing=2.0):
    """An ellipsoid of 62 x 80 x 60 mm half-axes with a bright core, at the template's place unless moved."""
    shape = tuple(int(n / spacing) for n in (200, 240, 200))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.add(Recipe().centre_mm, move) - np.array(shape) * spacing / 2 * 1.0
    x, y, z = np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3][:, None, None, None]
    x, y, z = (a - c for a, c in zip((x, y, z), np.add(Recipe().centre_mm, move), strict=True))
    radius = np.sqrt((x / 62) ** 2 + (y / 80) ** 2 + (z / 60) ** 2) * shrink
    data = (radius < 1) * (0.5 + 0.4 * (radius < 0.6) + 0.05 * np.sin(x / 9) * np.cos(y / 11))
    data += noise * np.random.default_rng(0).standard_normal(shape) * (radius < 1)
    data = np.asfortranarray(data * scale, np.float32)
    if fill is not None:
        data[:] = fill
    geometry = Geometry.from_affine(shape, affine)
    return Volume(data, affine, geometry, "0" * 64, "float32")


@pytest.fixture
def brain():
    """Callable making a Volume; see `make_brain`."""
    return make_brain
