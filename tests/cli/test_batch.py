"""What a command sets before it starts a batch."""

from __future__ import annotations

import os

import pytest

from hz_cli.batch import one_core_each

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def test_the_environment_does_not_decide_how_linear_algebra_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that sets them (Snakemake does, to a job's threads) changed voxels in their last bits."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "2")
    one_core_each()
    assert [os.environ[variable] for variable in VARIABLES] == ["1", "1", "1"]
