"""A bundle opened as for brains, for tests of what is around raw heads: quick, with real networks, records.

The ellipsoid of `small_dicom` is no head that preparation would let pass, so it is taken for a brain.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hz_runtime.batch.opened import Opened, open_bundle
from hz_runtime.batch.run_options import RunOptions


def open_without_preparation(bundle: Any, options: RunOptions) -> Opened:
    """As `open_bundle`, for scans that are taken for brains."""
    return open_bundle(bundle, replace(options, preparation=None, backend="onnxruntime-cpu"))
