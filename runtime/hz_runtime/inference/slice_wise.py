"""Slice-wise networks, as Bashyam 2020 trains them: a volume's axial slices in, a volume or one number out.

The axial slice k of a prepared volume (D, H, W) is `volume[:, :, k]`, foot to head. Slices of one scan travel
together in batches of one size and never share a batch with another scan's: engines pick their arithmetic by
shape, and so a scan's result is a function of that scan alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import BundleError, GridMismatch
from hz_runtime.model_space.feature_distance import FEATURES

if TYPE_CHECKING:
    from hz_runtime.backends.base import Backend

F32 = NDArray[np.float32]
Run = Callable[[F32], F32]

SLICE_BATCH = 16  # slices a network call; what a TensorRT engine of hz takes at once
SLICE_RANK = 4  # (N, 1, D, H); a network of volumes has (N, 1, D, H, W)
_LEAST_SHARE = 0.1  # of the fullest pair of slices; emptier pairs say little about seams
_TINY = 1e-12


def slice_wise(backend: Backend) -> bool:
    """Whether a network reads axial slices, not whole volumes."""
    return len(backend.inputs[0].shape) == SLICE_RANK


def axial_slices(volume: F32) -> F32:
    """(D, H, W) to its axial slices (W, 1, D, H), a contiguous copy."""
    return np.array(np.moveaxis(volume, 2, 0)[:, None], order="C")


def reassembled(slices: F32) -> F32:
    """Axial slices (W, 1, D, H) back to their volume (D, H, W), contiguous; undoes `axial_slices`."""
    return np.ascontiguousarray(np.moveaxis(slices[:, 0], 0, 2))


def middle(length: int, count: int) -> slice:
    """The `count` slices around the middle of `length`; where they cannot be centred, one nearer the foot.

    Raises GridMismatch where there are not as many.
    """
    if not 1 <= count <= length:
        raise GridMismatch(f"{count} middle slices of {length} make no sense.", "Take 1 or more, up to all.")
    first = (length - count) // 2
    return slice(first, first + count)


@dataclass(frozen=True)
class SliceHarmonizer:
    """A network that maps slices to slices, as a function of whole volumes.

    run : (SLICE_BATCH, 1, D, H) float32 to the same shape.

    Slices of one single value (the air above and below a head) do not go through it, they stay what they are:
    instance norms would divide them by the size of their rounding errors, again behind every conv. Measured:
    of an empty slice a generator made intensities up to 0.6 that differed by 0.5 between two engines.
    """

    run: Run

    def __call__(self, volumes: F32) -> F32:
        """(n, D, H, W) float32 to the same shape."""
        return np.stack([self._one(volume) for volume in volumes])

    def _one(self, volume: F32) -> F32:
        slices = axial_slices(volume)
        flat = slices.reshape(len(slices), -1)
        varying = flat.min(axis=1) < flat.max(axis=1)
        if varying.any():
            slices[varying] = in_batches(self.run, slices[varying])
        return reassembled(slices)


@dataclass(frozen=True)
class SlicePredictor:
    """A network that gives a number for every slice, as a function of whole volumes: the median over slices.

    run : (SLICE_BATCH, 1, D, H) float32 to (SLICE_BATCH, 1).
    middle_slices : how many slices around the middle it reads; 0 for all.
    """

    run: Run
    middle_slices: int = 0

    def __call__(self, volumes: F32) -> F32:
        """(n, D, H, W) float32 to (n,). Raises GridMismatch where there are fewer slices than it reads."""
        return np.array([np.median(self.each(volume)) for volume in volumes], np.float32)

    def each(self, volume: F32) -> F32:
        """The numbers of a volume's slices, (middle_slices,) float32, foot to head."""
        depth = volume.shape[2]
        kept = middle(depth, self.middle_slices or depth)
        return in_batches(self.run, axial_slices(volume[:, :, kept])).reshape(-1)


def in_batches(run: Run, slices: F32) -> F32:
    """A network's answers to (S, 1, D, H), S >= 1, in batches of one size, the last filled up with zeros."""
    answers = []
    for start in range(0, len(slices), SLICE_BATCH):
        part = slices[start : start + SLICE_BATCH]
        batch = np.zeros((SLICE_BATCH, *slices.shape[1:]), np.float32)
        batch[: len(part)] = part
        answers.append(run(batch)[: len(part)])
    joined: F32 = np.concatenate(answers)
    return joined


def answer_of(outputs: Mapping[str, F32]) -> F32:
    """The answer among what `Backend.run` gives by name, whatever the order: not the network's features."""
    return next(array for name, array in outputs.items() if name != FEATURES)


def of_volumes(backend: Backend, middle_slices: int = 0) -> Callable[[F32], F32]:
    """An opened network, whichever kind it is, as a function of prepared volumes.

    middle_slices : of the recipe; so many are read by a slice-wise network that gives numbers, only by that.
    The function takes (n, D, H, W) float32 and gives (n, D, H, W) or (n,) float32. A network of volumes gets
    them as one batch. Raises BundleError for a slice-wise predictor whose recipe names no middle slices.
    """

    def run(batch: F32) -> F32:
        return answer_of(backend.run(batch))

    if not slice_wise(backend):

        def whole(volumes: F32) -> F32:
            made = run(np.ascontiguousarray(volumes)[:, None])
            return made.reshape(volumes.shape) if made.ndim == volumes.ndim + 1 else made.reshape(-1)

        return whole
    if len(backend.outputs[0].shape) == SLICE_RANK:
        return SliceHarmonizer(run)
    if middle_slices < 1:
        raise BundleError(
            "the bundle holds a predictor of slices, and its recipe does not say how many to read.",
            "Export it again from its checkpoints:  hz-export --help",
        )
    return SlicePredictor(run, middle_slices)


@dataclass(frozen=True)
class Seams:
    """How much more neighbouring axial slices differ after a network than before it.

    Each number is the mean absolute difference between neighbouring slices over that between neighbours
    within slices, after, divided by the same before. 1 : no seams; any affine change of intensity gives it.
    2 : slices differ twice as much as anatomy and contrast explain.
    overall : of all pairs of slices together.  worst : of the worst single pair.
    """

    overall: float
    worst: float


def seams(before: F32, after: F32, brain: NDArray[np.bool_]) -> Seams:
    """Measure the seams that a slice-wise network leaves between slices.

    before, after : (D, H, W) float32, its input and output.  brain : (D, H, W) bool; only differences of
    voxels that both lie in it count, and only pairs of slices with a tenth of the fullest pair's voxels.
    Raises GridMismatch where the shapes differ.
    """
    if not before.shape == after.shape == brain.shape:
        raise GridMismatch(f"before is {before.shape}, after {after.shape} and the brain {brain.shape}.")
    both = brain[:, :, 1:] & brain[:, :, :-1]
    counts = both.sum((0, 1))
    kept = counts >= max(1, _LEAST_SHARE * counts.max(initial=0))
    (sums_before, within_before), (sums_after, within_after) = (
        ((np.abs(np.diff(v.astype(np.float64), axis=2)) * both).sum((0, 1))[kept], _within(v, brain))
        for v in (before, after)
    )
    scale = within_before / max(within_after, _TINY)
    ratios = scale * sums_after / np.maximum(sums_before, _TINY)
    overall = scale * float(sums_after.sum()) / max(float(sums_before.sum()), _TINY)
    return Seams(float(overall), float(ratios.max(initial=0.0)))


def _within(volume: F32, brain: NDArray[np.bool_]) -> float:
    """Mean absolute difference of neighbours within slices, both in the brain."""
    total, count = 0.0, 0
    for axis in (0, 1):
        ahead, behind = (slice(None),) * axis + (slice(1, None),), (slice(None),) * axis + (slice(-1),)
        both = brain[ahead] & brain[behind]
        total += float(np.abs(np.diff(volume.astype(np.float64), axis=axis))[both].sum())
        count += int(both.sum())
    return total / max(count, 1)
