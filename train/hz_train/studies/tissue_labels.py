"""Label maps of scans: CSF, grey and white matter, from maps of tissues or of regions, on any grid.

A map of regions has a table `labels.tsv` beside it or beside its folder, with the columns index and tissue
(CSF, GM, WM; anything else is no tissue). A scan that hz-prepare brought to the template finds its map by
the transform that hz-prepare left beside it. Whether a map fits its scan: by how much of the brain it covers.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.io.participants import read_table
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.resample import resample
from hz_train.cohort import Scan

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

CODES = {"CSF": 1, "GM": 2, "WM": 3}
LEAST_COVERED = 0.6  # of a brain by its own map; a map in another space, or of another head, covers less
_IN_TEMPLATE = "_space-"  # hz-prepare's names: NAME_space-MNI152_res-2_desc-brain_T1w.nii.gz
_TRANSFORM = "{}_from-T1w_to-{}_mode-image_xfm.json"


def tissue_labels(scan: Scan, shape: tuple[int, ...], affine: F64) -> U8:
    """A scan's label map on a grid: 0 background, 1 CSF, 2 grey and 3 white matter.

    shape, affine : of the grid, in the scan's world.
    A voxel at least half filled by tissue takes the one that fills most of it; the rest is background.
    Raises UsageError for values that are no tissues where no table says what they are.
    """
    assert scan.labels is not None
    found = read_volume(scan.labels)
    values, table = np.rint(found.data).astype(np.int64), _regions(scan.labels)
    if table is not None:
        known = np.zeros(max(*table, int(values.max())) + 1, np.int64)
        known[list(table)] = list(table.values())
        values = known[np.maximum(values, 0)]
    if values.min() < 0 or values.max() > 3:
        raise UsageError(
            f"{scan.labels.name} has labels from {values.min():g} to {values.max():g}.",
            "Tissue maps hold 0 background, 1 CSF, 2 grey and 3 white matter; a map of regions needs a "
            "labels.tsv beside it with the columns index and tissue (CSF, GM, WM).",
        )
    here = _to_scan(scan.path) @ found.affine
    parts = [resample(np.asarray(values == k, np.float32), here, shape, affine) for k in (1, 2, 3)]
    filled = np.stack(parts)
    return np.where(filled.sum(axis=0) >= 0.5, 1 + filled.argmax(axis=0), 0).astype(np.uint8)


def check_cover(scan: Scan, labels: U8, brain: Mask) -> None:
    """Raise UsageError where a label map does not lie on its scan's brain, both (I, J, K)."""
    covered = float((labels[brain] > 0).mean())
    if covered < LEAST_COVERED:
        assert scan.labels is not None
        raise UsageError(
            f"{scan.labels.name} covers {covered:.0%} of the brain in {scan.path.name}.",
            "Give the map in the scan's own space, or write n/a in the labels column.",
        )


@cache
def _table(path: Path) -> dict[int, int]:
    table = read_table(path)
    table.need("index", "tissue")
    try:
        return {int(row.get("index")): CODES.get(row.get("tissue"), 0) for row in table.rows}
    except ValueError:
        raise UsageError(
            f"{path.name}: an index is no whole number.", "Write one line a region: index, name, tissue."
        ) from None


def _regions(labels: Path) -> dict[int, int] | None:
    """The codes of a map of regions; None for a map of tissues."""
    for folder in (labels.parent, labels.parent.parent):
        if (folder / "labels.tsv").is_file():
            return _table(folder / "labels.tsv")
    return None


def _to_scan(path: Path) -> F64:
    """(4, 4) from the head's world mm to the scan's: the identity, but for what hz-prepare has moved."""
    name, _, rest = path.name.partition(_IN_TEMPLATE)
    transform = path.with_name(_TRANSFORM.format(name, rest.partition("_")[0]))
    if not rest or not transform.is_file():
        return np.eye(4)
    return np.asarray(json.loads(transform.read_text())["matrix"], np.float64)
