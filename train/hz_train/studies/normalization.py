"""Normalisations of a scan's intensities at its own resolution: what a harmonizer must beat as it is written.

Z-scores and histogram matching are those of `baselines`; here are the two that mean little on a grid that was
scaled before. A normalisation measures scans, learns from the measures of the reference site's training
scans, and changes one volume at a time. All answer in the reference site's units, so that tissues keep their
ratios.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from hz_runtime.errors import NoBrain
from hz_train.studies.baselines import Nyul, ZScore, foreground, shifted_and_scaled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

STRIPE = 0.05  # of the brain's voxels on either side of the peak (Shinohara 2014, tau)
RARE = 0.2  # of the highest peak; lower ones are no tissue
BINS = 1000
SMOOTHING = 0.02  # of the range of intensities, sd of the Gaussian that smooths the histogram


class Normalization(Protocol):
    """One way to bring a scan's intensities to those of the reference site."""

    name: str

    def measured(self, volume: F32) -> F64:
        """(k,) what has to be known of a scan."""

    def learn(self, measures: F64) -> None:
        """(n, k), `measured` of the reference site's training scans."""

    def one(self, volume: F32) -> F32:
        """(I, J, K) float32 to the same shape; air is 0 before and after."""


class MeanLevel:
    """Each scan divided by the mean of its tissue, times the reference site's."""

    name = "mean"

    def __init__(self) -> None:
        self.level = 1.0

    def measured(self, volume: F32) -> F64:
        return np.array([volume[foreground(volume)].mean(dtype=np.float64)])

    def learn(self, measures: F64) -> None:
        self.level = float(measures.mean())

    def one(self, volume: F32) -> F32:
        return np.asarray(volume * np.float32(self.level / self.measured(volume)[0]), np.float32)


class WhiteStripe:
    """Each scan's normal-appearing white matter brought to the reference site's (Shinohara 2014).

    The stripe is a tenth of the brain's voxels around the white matter's peak of the histogram, the last one
    of some height in a T1-weighted scan; its mean and sd are the unit. The paper writes (v - mean) / sd; here
    that is brought to the reference site's mean and sd, so that a ratio of two tissues means something.
    """

    name = "WhiteStripe"

    def __init__(self) -> None:
        self.mean, self.sd = 0.0, 1.0

    def measured(self, volume: F32) -> F64:
        """(2,) mean and sd of the stripe. Raises NoBrain where the brain has one intensity."""
        tissue = np.sort(volume[foreground(volume)].astype(np.float64))
        at = np.searchsorted(tissue, white_matter_peak(tissue)) / tissue.size
        first, last = (int(np.clip(at + d, 0, 1) * tissue.size) for d in (-STRIPE, STRIPE))
        stripe = tissue[first : max(last, first + 2)]
        return np.array([stripe.mean(), stripe.std()])

    def learn(self, measures: F64) -> None:
        self.mean, self.sd = (float(v) for v in measures.mean(axis=0))

    def one(self, volume: F32) -> F32:
        return shifted_and_scaled(volume, self.measured(volume), (self.mean, self.sd))


def white_matter_peak(tissue: F64) -> float:
    """The intensity of the last peak of a smoothed histogram that is at least a fifth as high as the highest.

    tissue : (n,) sorted. Raises NoBrain where all are equal.
    """
    low, high = (float(v) for v in np.percentile(tissue, [0.1, 99.9]))
    if not high > low:
        raise NoBrain("a brain of one intensity has no white matter to be found.", "Look at the scan.")
    counts, edges = np.histogram(tissue, BINS, (low, high))
    smooth = gaussian_filter1d(counts.astype(np.float64), SMOOTHING * BINS, mode="constant")
    rising = np.diff(smooth) > 0
    peaks = np.flatnonzero(rising[:-1] & ~rising[1:]) + 1
    peaks = peaks[smooth[peaks] >= RARE * smooth.max()]
    peak = int(peaks[-1]) if peaks.size else int(smooth.argmax())
    return float(edges[peak] + edges[peak + 1]) / 2


def normalizations() -> list[Normalization]:
    """All of them, none fitted yet."""
    return [MeanLevel(), ZScore(), WhiteStripe(), Nyul()]
