"""Whether a scan still shows the same brain: tissue volumes, the grey-white boundary, edges.

Nothing here needs registration: a method answers on the grid it was given, and voxel (i, j, k) is the same
place before and after. All measures read one volume at a time and know nothing of sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_gradient_magnitude

from hz_runtime.errors import GridMismatch
from hz_runtime.model_space.levels import otsu_thresholds

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

TISSUES = ("CSF", "grey matter", "white matter")
CSF, GREY, WHITE = 1, 2, 3
EDGE_SIGMA = 1.0  # voxels
RIM = 2  # voxels


def tissues(volume: F32, mask: Mask) -> U8:
    """CSF, grey and white matter of a T1-weighted scan by intensity alone: 1, 2, 3; 0 outside the mask.

    volume : (D, H, W), any unit; darkest CSF, brightest white matter. Thresholds by `otsu_thresholds` of
    the voxels in the mask. A fixed rule and no more: it is told nothing of anatomy, so that it cannot put
    back what a method took away, and what a receive field does to a scan counts as the scan's.
    """
    if volume.shape != mask.shape:
        raise GridMismatch(f"a volume of {volume.shape} and a mask of {mask.shape} cannot be compared.")
    low, high = otsu_thresholds(volume[mask])
    labels = 1 + (volume > low).astype(np.uint8) + (volume > high)
    return np.where(mask, labels, 0).astype(np.uint8)


def tissue_means(volume: F32, mask: Mask) -> F64:
    """(3,) mean CSF, grey and white matter of the voxels in a mask, divided as by `tissues`."""
    inside = volume[mask].astype(np.float64)
    of_class = np.searchsorted(otsu_thresholds(volume[mask]), inside)
    return np.array([inside[of_class == k].mean() for k in range(3)])


def partial_volumes(volume: F32, mask: Mask, means: F64 | None = None) -> F64:
    """(3,) voxels of CSF, grey and white matter in a mask, in parts of voxels.

    means : `tissue_means` of this volume, or of one that it is compared with.
    A voxel between the means of two tissues holds both in proportion (as Santago & Gage 1993 and most
    segmentations since): counted as whole voxels, a change below a voxel's size would be nothing in one scan
    and a whole rim in the next.
    """
    inside = volume[mask].astype(np.float64)
    csf, grey, white = tissue_means(volume, mask) if means is None else means
    not_fluid = float(np.clip((inside - csf) / (grey - csf), 0, 1).sum())
    white_matter = float(np.clip((inside - grey) / (white - grey), 0, 1).sum())
    return np.array([inside.size - not_fluid, not_fluid - white_matter, white_matter])


def tissue_volumes(labels: U8) -> F64:
    """(3,) voxels of CSF, grey and white matter."""
    return np.bincount(labels.ravel(), minlength=4)[1:4].astype(np.float64)


def percent_change(volumes: F64, wanted: F64) -> F64:
    """100 (volumes - wanted) / wanted; nan for a tissue that is not wanted at all."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(wanted > 0, 100 * (volumes - wanted) / wanted, np.nan)


def surface(mask: Mask) -> Mask:
    """Voxels of a mask with one of their six neighbours outside it; the edge of the grid is outside."""
    return np.asarray(mask & ~binary_erosion(mask))


def surface_distance(a: Mask, b: Mask) -> float:
    """Mean distance in voxels between two masks' surfaces, there and back.

    The mean over the voxels of both surfaces of the distance to the nearest voxel of the other one
    (average symmetric surface distance, Heimann et al. 2009). 0 for equal masks; nan where one is empty.
    """
    if a.shape != b.shape:
        raise GridMismatch(f"masks of {a.shape} and {b.shape} cannot be compared.")
    first, second = surface(a), surface(b)
    if not first.any() or not second.any():
        return float("nan")
    there = distance_transform_edt(~second)[first]
    back = distance_transform_edt(~first)[second]
    return float((there.sum() + back.sum()) / (there.size + back.size))


def dice(a: Mask, b: Mask) -> float:
    """2 |A and B| / (|A| + |B|), Dice 1945; 1 for equal masks, nan for two empty ones."""
    total = int(a.sum()) + int(b.sum())
    return float(2 * (a & b).sum() / total) if total else float("nan")


def edge_correlation(a: F32, b: F32, mask: Mask) -> float:
    """Pearson r of the gradient magnitudes of two volumes, where edges are and not how bright.

    Gradients of the volumes smoothed by a Gaussian of sigma 1 voxel. Only voxels deeper than 2 voxels in
    the mask count: the rim of the brain is an edge in every scan and would hide the rest.
    A change of gain or offset gives 1; nan where one of them is flat.
    """
    inner = binary_erosion(mask, iterations=RIM)
    if inner.sum() < 2:
        return float("nan")
    x, y = (gaussian_gradient_magnitude(v.astype(np.float64), EDGE_SIGMA)[inner] for v in (a, b))
    if np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


@dataclass(frozen=True)
class Kept:
    """What of one head's anatomy a volume still shows.

    change : (3,) percent change of CSF, grey and white matter volume.
    boundary : mean distance between the surfaces of white matter, voxels.
    white_dice : overlap of white matter.  edges : correlation of gradient magnitudes; nan where the
        comparison is with a label map.
    """

    change: F64
    boundary: float
    white_dice: float
    edges: float = float("nan")


def kept(made: F32, scan: F32, mask: Mask) -> Kept:
    """Compare a volume with the scan (or truth) of the same head, both divided into tissues in one mask.

    One mask for both: otherwise a background that is a little brighter would count as tissue.
    """
    found = kept_of_labels(made, tissues(scan, mask))
    return Kept(found.change, found.boundary, found.white_dice, edge_correlation(made, scan, mask))


def kept_of_labels(made: F32, labels: U8) -> Kept:
    """Compare a volume with a label map of the same head, 0 to 3; divided into tissues where labels are."""
    here = tissues(made, labels > 0)
    change = percent_change(tissue_volumes(here), tissue_volumes(labels))
    white, wanted = here == WHITE, labels == WHITE
    return Kept(change, surface_distance(white, wanted), dice(white, wanted))
