"""What a harmonizer must beat: nothing at all, z-scores, histogram matching, and ComBat on features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.foreground import BLOCKS, block_means, foreground_threshold
from hz_train.datasets import ModelInputs
from hz_train.studies.combat import CombatModel, fit_combat
from hz_train.studies.presets import whom

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEAST_SPREAD = 1e-4  # sd over a site's scans, intensity units, of a box that ComBat takes
LANDMARKS = (1.0, *np.arange(10.0, 100.0, 10.0).tolist(), 99.0)  # percentiles, Nyul, Udupa & Zhang 2000


def foreground(volume: F32) -> Mask:
    """Tissue of a volume in model space; the runtime's own rule, on (D, H, W)."""
    return volume > foreground_threshold(volume)


def shifted_and_scaled(volume: F32, own: Sequence[float] | F64, wanted: Sequence[float]) -> F32:
    """A volume whose tissue's level and spread `own` become `wanted`; background becomes 0."""
    mask = foreground(volume)
    made = np.zeros_like(volume)
    scale = wanted[1] / max(float(own[1]), 1e-6)
    made[mask] = (volume[mask].astype(np.float64) - own[0]) * scale + wanted[0]
    return made


class Raw:
    """The scans as they are."""

    name = "raw"
    features = False

    def __init__(self) -> None:
        self.seen: frozenset[str] = frozenset()

    def fit(self, training: ModelInputs, reference: str) -> None:
        """Nothing to learn."""

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        return volumes


class ZScore:
    """Each scan's tissue shifted and scaled to the mean and sd of the reference site's tissue.

    A z-score in the reference site's units: (v - mean) / sd, then times the reference's sd plus its mean,
    so that a predictor trained on values around [0, 1] can read it. Background stays 0.
    """

    name = "z-score"
    features = False

    def __init__(self) -> None:
        self.seen: frozenset[str] = frozenset()
        self.mean, self.sd = 0.0, 1.0

    def fit(self, training: ModelInputs, reference: str) -> None:
        self.learn(np.stack([self.measured(v) for v in _at(training, reference)]))
        self.seen = whom(training)

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        """(n, D, H, W) to the same shape; tissue darker than the reference's range may fall below 0."""
        return np.stack([self.one(volume) for volume in volumes])

    def measured(self, volume: F32) -> F64:
        """(2,) mean and sd of a volume's tissue."""
        tissue = volume[foreground(volume)].astype(np.float64)
        return np.array([tissue.mean(), tissue.std()])

    def learn(self, measures: F64) -> None:
        """(n, 2), `measured` of the reference site's scans."""
        self.mean, self.sd = (float(v) for v in measures.mean(axis=0))

    def one(self, volume: F32) -> F32:
        """One volume of any shape."""
        return shifted_and_scaled(volume, self.measured(volume), (self.mean, self.sd))


class Nyul:
    """Histogram matching: landmarks of a scan's tissue brought to the reference site's mean landmarks.

    Nyul & Udupa 1999 with the deciles of Nyul, Udupa & Zhang 2000: percentiles 1, 10, 20 ... 90, 99,
    piecewise linear between them, the outer pieces continued. Below the first landmark the map runs to
    (0, 0), so that air stays air.
    """

    name = "Nyul"
    features = False

    def __init__(self) -> None:
        self.seen: frozenset[str] = frozenset()
        self.standard: F64 = np.zeros(len(LANDMARKS))

    def fit(self, training: ModelInputs, reference: str) -> None:
        self.learn(np.stack([self.measured(v) for v in _at(training, reference)]))
        self.seen = whom(training)

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        """(n, D, H, W) to the same shape, never below 0."""
        return np.stack([self.one(volume) for volume in volumes])

    def measured(self, volume: F32) -> F64:
        """(11,) landmarks of a volume's tissue."""
        return np.asarray(np.percentile(volume[foreground(volume)].astype(np.float64), LANDMARKS))

    def learn(self, measures: F64) -> None:
        """(n, 11), landmarks of the reference site's scans."""
        # Scans are first brought to one range, the mean one, so that bright ones do not weigh more.
        low, high = measures[:, :1], measures[:, -1:]
        first, last = float(low.mean()), float(high.mean())
        self.standard = ((measures - low) / (high - low) * (last - first) + first).mean(0)

    def one(self, volume: F32) -> F32:
        """One volume of any shape."""
        own = np.concatenate([[0.0], self.measured(volume)])
        standard = np.concatenate([[0.0], self.standard])
        own = np.maximum.accumulate(own + np.arange(own.size) * 1e-9)  # ties would divide by zero
        slope = (standard[-1] - standard[-2]) / (own[-1] - own[-2])
        top = max(float(volume.max()), own[-1] + 1e-6)
        made = np.interp(volume, [*own, top], [*standard, standard[-1] + slope * (top - own[-1])])
        return np.asarray(made, np.float32)


class Blocks:
    """Means of 8 x 8 x 8 boxes of the scans as they are: what ComBat is to be compared with."""

    name = "raw, block means"
    features = True

    def __init__(self) -> None:
        self.seen: frozenset[str] = frozenset()

    def fit(self, training: ModelInputs, reference: str) -> None:
        """Nothing to learn."""

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        """(n, D, H, W) to (n, 8, 8, 8)."""
        return block_means(volumes)


class ComBat:
    """ComBat (Johnson 2007, Fortin 2018) on block means, the reference site's scans unchanged.

    Without covariates: the age or diagnosis of a scored scan is what is to be predicted, and must not
    enter its features. Differences between sites that come with age are therefore removed with the rest.
    Boxes that do not vary at some site, mostly air, are left alone.
    """

    name = "ComBat, block means"
    features = True

    def __init__(self) -> None:
        self.seen: frozenset[str] = frozenset()
        self._model: CombatModel | None = None
        self._used: Mask = np.zeros(0, bool)

    def fit(self, training: ModelInputs, reference: str) -> None:
        features = _flat(block_means(training.grids))
        sites = [s.site for s in training.scans]
        spread = [features[[s == site for s in sites]].std(0) for site in sorted(set(sites))]
        self._used = np.min(spread, axis=0) > LEAST_SPREAD
        self._model = fit_combat(features[:, self._used], sites, reference)
        self.seen = whom(training)

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        """(n, D, H, W) to (n, 8, 8, 8). Raises UsageError for a site that it was not fitted on."""
        assert self._model is not None, "fit first"
        features = _flat(block_means(volumes))
        features[:, self._used] = self._model.apply(features[:, self._used], sites)
        return features.reshape(-1, BLOCKS, BLOCKS, BLOCKS).astype(np.float32)


def _flat(blocks: F32) -> F64:
    return blocks.reshape(len(blocks), -1).astype(np.float64)


def _at(training: ModelInputs, site: str) -> F32:
    return training.grids[[scan.site == site for scan in training.scans]]
