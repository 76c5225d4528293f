"""What is known of a head besides its scan: how the reference site would show it, and its tissues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import Recipe, to_model_space
from hz_train.cohort import Cohort, Scan
from hz_train.datasets import ModelInputs, load
from hz_train.studies.tissue_labels import tissue_labels

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
NAME = "truth"


def truths(inputs: ModelInputs, recipe: Recipe, n4: bool) -> dict[Path, F32]:
    """The reference site's view of scans that have one, in model space: scan's path to (D, H, W)."""
    known = [s for s in inputs.scans if s.truth is not None]
    if not known:
        return {}
    paths = list(dict.fromkeys(s.truth for s in known))
    asked = [replace(next(s for s in known if s.truth == p), path=p) for p in paths if p is not None]
    grids = dict(zip(paths, load(Cohort(tuple(asked)), recipe, n4).grids, strict=True))
    return {s.path: grids[s.truth] for s in known}


def label_maps(inputs: ModelInputs, recipe: Recipe) -> dict[Path, U8]:
    """Tissue labels on the grid of every scan that has them: scan's path to (D, H, W), 0 to 3."""
    return {s.path: label_map(s, recipe) for s in inputs.scans if s.labels is not None}


def label_map(scan: Scan, recipe: Recipe) -> U8:
    """A scan's label map on its grid in model space, 0 to 3. Raises UsageError as `tissue_labels`."""
    affine = to_model_space(read_volume(scan.path), recipe).grid_affine  # follows the shift of this scan
    return tissue_labels(scan, recipe.grid_shape, affine)
