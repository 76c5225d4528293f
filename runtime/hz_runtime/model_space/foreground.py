"""What of a volume is brain and what is air: thresholds, sizes, and coarse means over all of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import NoBrain
from hz_runtime.io.volume import Volume

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

# With its fluid. Less than the first is no brain at all (a newborn's has about 350), less than the second no
# adult's (1000 to 1900; masks differ by a tenth), more than the last a head: stripped heads have up to 1900,
# whole ones from 2450.
SMALLEST_BRAIN_CM3 = 100.0
SMALLEST_ADULT_BRAIN_CM3 = 700.0
LARGEST_BRAIN_CM3 = 2300.0
FEWEST_LEVELS = 32  # different intensities; a label map or a thresholded picture has fewer
# Shares of a stripped scan's voxels. Cropped to the brain's own box half of them are air: a fifth is enough
# to know what intensity air has. That a head is stripped already, so that nothing is to be done, takes more.
LEAST_AIR = 0.2
LEAST_STRIPPED_AIR = 0.3


def thinned(volume: Volume) -> tuple[F32, F64]:
    """Every second voxel along each axis of 64 or more, a contiguous copy, and its affine (4, 4).

    Enough to find the brain by, at an eighth of the voxels.
    """
    return every_second(volume.data), volume.affine @ np.diag([*_steps(volume.data), 1])


def every_second(array: NDArray[Any]) -> NDArray[Any]:
    """The voxels of `thinned`, of any array of the scan's shape."""
    return np.asfortranarray(array[tuple(slice(None, None, step) for step in _steps(array))])


def _steps(array: NDArray[Any]) -> list[int]:
    return [2 if n >= 64 else 1 for n in array.shape]


def air_of(thin: F32) -> float | None:
    """Intensity of the air around a stripped brain: the minimum, where that one value fills the air.

    A stripped scan has exact zeros (or one constant) for air; None where no single value fills a fifth.
    """
    low = float(thin.min())
    return low if float((thin <= low).mean()) > LEAST_AIR else None


def grey_levels(thin: F32) -> int:
    """How many different intensities a volume has, counted on at most some 200 000 of its voxels."""
    return len(np.unique(thin.ravel(order="K")[:: max(1, thin.size // 200_000)]))


def volume_cm3(mask: Mask, affine: F64) -> float:
    """Volume of the True voxels of an (I, J, K) mask with `affine` (4, 4), voxel to world mm."""
    return float(mask.sum()) * abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def share_within(mask: Mask, affine: F64, shape: tuple[int, int, int], grid_affine: F64) -> float:
    """Share of a mask's voxels, (I, J, K) with `affine` (4, 4), that falls within another grid's box.

    shape, grid_affine : of that grid; both affines lead to the same world.
    """
    to_grid = np.linalg.inv(grid_affine) @ affine
    index = np.ogrid[tuple(slice(n) for n in mask.shape)]
    within = mask
    for row, size in zip(to_grid[:3], shape, strict=True):
        # Terms that are zero stay out: then `at` has one axis, not three, unless the scan is oblique.
        at = row[3] + sum(factor * n for factor, n in zip(row, index, strict=False) if factor)
        within = within & ((at > -0.5) & (at < size - 0.5))
    return float(within.sum() / mask.sum())


def centroid(mask: Mask, affine: F64) -> F64:
    """World mm of the foreground's centre of mass, every foreground voxel weighing the same."""
    counts = [mask.sum(axis=tuple(k for k in range(3) if k != axis)) for axis in range(3)]
    index = np.array([float(c @ np.arange(c.size)) / float(c.sum()) for c in counts])
    centre: F64 = affine[:3, :3] @ index + affine[:3, 3]
    return centre


BRIGHT_END = 98  # percentile
SAMPLED = 2000  # voxels that tell about where the bright end lies, of their square and more
FOREGROUND_SHARE = 0.1  # of the bright end; skull-stripped scans have nothing between air and CSF


def foreground_threshold(data: F32) -> float:
    """Intensity above which a voxel is tissue: a tenth of the way from air to the bright end.

    The bright end is the 98th percentile of voxels above the minimum, so that neither a few hot
    voxels nor the amount of air around the brain moves it. Raises NoBrain where there are none.
    """
    low = float(data.min())
    above = data > low
    count = int(np.count_nonzero(above))
    if count == 0:
        raise NoBrain(
            f"every voxel is {low:g}: there is no brain in this scan.",
            "Check the file in a viewer; an empty export or a failed mask looks like this.",
        )
    brightest = _brightest(data, low, count)
    bright = percentile(data[above] if brightest is None else brightest, BRIGHT_END, count)
    return low + FOREGROUND_SHARE * (bright - low)


def _brightest(data: F32, low: float, count: int) -> F32 | None:
    """The voxels, of `count` above `low`, in which the bright end lies; None where a look does not tell.

    data : (I, J, K). Of millions of voxels sorting the brightest few is a tenth of the work.
    """
    if data.size < SAMPLED**2:
        return None
    sample = data.ravel(order="K")[:: data.size // SAMPLED]
    sample = sample[sample > low]
    if not sample.size:
        return None
    least = percentile(sample, BRIGHT_END - 3)
    brightest = data[data >= least] if least > low else data[:0, 0, 0]
    return brightest if brightest.size >= count * (101 - BRIGHT_END) / 100 else None


def percentile(values: NDArray[Any], percent: float, count: int | None = None) -> float:
    """`np.percentile` of (n,) values to the bit, without the checks, which take longer on a few thousand.

    count : of which the n are the largest; None: these are all.
    """
    count = values.size if count is None else count
    at = (count - 1) * (percent / 100)
    left_out = count - values.size
    first = min(int(at), count - 1) - left_out
    second = min(first + 1, values.size - 1)
    ordered = np.partition(values, (first, second))
    low, high, part = ordered[first], ordered[second], at - int(at)
    apart = high - low
    return float(low + apart * part if part < 0.5 else high - apart * (1 - part))


BLOCKS = 8  # along each axis, Komandur et al. 2023


def block_means(grids: F32, blocks: int = BLOCKS) -> F32:
    """(..., D, H, W) to (..., blocks, blocks, blocks): the mean of each box, sizes as even as they can be.

    Along an axis of fewer voxels than boxes, boxes share voxels.
    """
    means: NDArray[Any] = grids
    for axis in (-3, -2, -1):
        size = grids.shape[axis]
        edges = np.linspace(0, size, blocks + 1).round().astype(np.int64)
        widths = np.maximum(np.diff(edges), 1).reshape(-1, *[1] * (-1 - axis))
        summed = np.add.reduceat(means, np.minimum(edges[:-1], size - 1), axis=axis, dtype=np.float64)
        means = summed / widths
    return means.astype(np.float32)


def blocks(grid: F32) -> bytes:
    """`block_means` of a volume in [0, 1]: 512 bytes, C order, 255 for 1.

    What Komandur et al. 2023 (Figure 2) compare scans by.
    """
    means = np.nan_to_num(block_means(grid))
    return np.rint(np.clip(means, 0.0, 1.0) * 255).astype(np.uint8).tobytes("C")
