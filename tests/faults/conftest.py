"""Brains that a preparation with a stand-in for niimath takes a second for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from processes import fake_niimath, finished
from small_heads import made_head, write_head

STRIPPED = ("--brain-mask", "none", "--plain")


@pytest.fixture(scope="session")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four stripped brains, cut to a box around them."""
    folder = tmp_path_factory.mktemp("brains")
    head, brain, affine = made_head()
    corners = np.argwhere(brain)
    low, high = corners.min(axis=0) - 3, corners.max(axis=0) + 4
    box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    affine[:3, 3] += affine[:3, :3] @ low
    for number in range(1, 5):
        data = np.where(brain, head * (1 + number / 10), 0)
        write_head(folder / f"sub-{number:02}_T1w.nii.gz", data[box], affine)
    return folder


@pytest.fixture(scope="session")
def undisturbed(brains: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What hz-prepare makes of them when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = (fake_niimath(folder / "fake"),)
    assert finished("prepare", brains, "--out", folder / "out", *STRIPPED, path=path)[0] == 0
    return folder / "out"
