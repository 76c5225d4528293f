"""A run in place of that of raw heads, for tests of what is around it: quick, with real networks and records.

The ellipsoid of `small_dicom` is no head that preparation would let pass, so it is taken for a brain.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions


def run_without_preparation(
    inputs: list[Path], bundle: Any, out: Path, options: RunOptions, *more: Any
) -> Any:
    """As `run_batch`, of scans that are taken for brains."""
    return run_batch(
        inputs, bundle, out, replace(options, preparation=None, backend="onnxruntime-cpu"), *more
    )
