"""Scans at their own resolution as every method would write them, each reduced to a few numbers at once.

Volumes of many grids do not fit into one array, nor all of them into memory: a scan is read, shown through
every method, measured and let go. One division into tissues serves all methods, so that none is rewarded for
moving voxels: label maps where all scans have one, else Otsu's classes of the scan without its field. (They
are the classification form of a mixture of three normal distributions of equal shares and spreads; with free
or common spreads mixtures overlap label maps less, because one tissue takes the mixed voxels.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hz_runtime.io.volume import Volume, read_volume
from hz_runtime.model_space.air import with_air_zero
from hz_runtime.preparation.n4 import corrected
from hz_train.cohort import Scan
from hz_train.studies.anatomy import CSF, GREY, WHITE, tissues
from hz_train.studies.baselines import Raw, foreground
from hz_train.studies.normalization import Normalization
from hz_train.studies.tissue_labels import check_cover, tissue_labels
from hz_train.studies.trained_harmonizer import TrainedHarmonizer

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FEATURES = ("grey_white", "csf_white", "cnr", "level")
LEVEL = FEATURES.index("level")
QUANTILES = 500  # of the brain's intensities, that a scan's histogram is kept as
WORKERS = 2
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class NativeScan:
    """A scan on its own voxels, before any method.

    volume : as read.  sound : the same with air 0.  flat : without its receive field, the brain's median 1.
    brain : (I, J, K) foreground of `flat`.  labels : (I, J, K) 0 to 3, 0 outside the brain.
    """

    scan: Scan
    volume: Volume
    sound: Volume
    flat: F32
    brain: Mask
    labels: U8

    @classmethod
    def read(cls, scan: Scan, mapped: bool) -> NativeScan:
        """mapped : take the scan's label map; else tissues by Otsu's thresholds of the scan without its
        field.

        Raises ScanError for a bad file, UsageError for a label map that does not fit.
        """
        volume = read_volume(scan.path)
        sound = with_air_zero(volume)
        flat = without_field(sound)
        brain = foreground(flat)
        if mapped:
            labels = np.where(brain, tissue_labels(scan, flat.shape, volume.affine), 0).astype(np.uint8)
            check_cover(scan, labels, brain)
        else:
            labels = tissues(flat, brain)
        return cls(scan, volume, sound, flat, brain, labels)


def all_mapped(scans: Sequence[Scan]) -> bool:
    """Whether every scan has a label map: else none is used.

    Maps and thresholds draw the same tissue differently, and two sites would differ by how theirs was drawn.
    """
    return all(scan.labels is not None for scan in scans)


def without_field(sound: Volume) -> F32:
    """A volume whose air is 0 without its receive field, the brain's median 1, (I, J, K) float32."""
    flat = corrected(sound.data, sound.affine)
    return np.asarray(flat / np.float32(np.median(flat[foreground(flat)])), np.float32)


@dataclass(frozen=True, eq=False)
class Measures:
    """What is kept of a scan after a method.

    features : (4,) FEATURES; the level is white matter's mean, in the method's own unit.
    median : of the brain.  quantiles : (500,) of the brain's intensities, in the same unit.
    """

    features: F64
    median: float
    quantiles: F64

    @classmethod
    def of(cls, made: F32, native: NativeScan) -> Measures:
        """made : (I, J, K) float32, the scan after the method."""
        inside = made[native.brain].astype(np.float64)
        shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
        return cls(
            tissue_features(made, native.labels), float(np.median(inside)), np.quantile(inside, shares)
        )


def tissue_features(volume: F32, labels: U8) -> F64:
    """(4,) mean grey over mean white matter, CSF over white matter, contrast to noise, white matter's mean.

    Contrast to noise is (white - grey) / pooled standard deviation of the two. nan where a tissue is missing.
    """
    csf, grey, white = (volume[labels == k].astype(np.float64) for k in (CSF, GREY, WHITE))
    if min(csf.size, grey.size, white.size) < 2:
        return np.full(len(FEATURES), np.nan)
    squares = grey.var() * grey.size + white.var() * white.size
    pooled = np.sqrt(squares / (grey.size + white.size - 2))
    bright = float(white.mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.array([grey.mean(), csf.mean()]) / bright
        return np.array([*ratios, (bright - grey.mean()) / pooled, bright])


def learned(found: Sequence[Normalization], scans: Sequence[Scan]) -> list[Normalization]:
    """The normalisations, fitted on the reference site's training scans without their fields."""

    def one(scan: Scan) -> list[F64]:
        flat = without_field(with_air_zero(read_volume(scan.path)))
        return [method.measured(flat) for method in found]

    each = over_scans(one, scans, "landmarks")
    for method, measures in zip(found, zip(*each, strict=True), strict=True):
        method.learn(np.stack(measures))
    return list(found)


def measured(
    scans: Sequence[Scan], harmonizer: TrainedHarmonizer, found: Sequence[Normalization]
) -> dict[str, list[Measures]]:
    """Every method's measures of every scan, in order: raw, the normalisations after N4, the harmonizer.

    Raises the errors of `NativeScan.read`, NoBrain as hz-run does.
    """
    name, mapped = harmonizer.name, all_mapped(scans)

    def one(scan: Scan) -> dict[str, Measures]:
        native = NativeScan.read(scan, mapped)
        shown: dict[str, Callable[[], F32]] = {Raw.name: lambda: native.sound.data}
        shown |= {_after_n4(m.name): (lambda m=m: m.one(native.flat)) for m in found}  # type: ignore[misc]
        shown[name] = lambda: harmonizer.written(native.volume)
        return {method: Measures.of(make(), native) for method, make in shown.items()}

    each = over_scans(one, scans, "as written")
    return {method: [row[method] for row in each] for method in each[0]}


def _after_n4(name: str) -> str:
    return f"N4, {name}"


def over_scans(one: Callable[[Scan], T], scans: Sequence[Scan], what: str) -> list[T]:
    """What a function of a scan gives for each of them, in order, two at a time."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(tqdm(pool.map(one, scans), total=len(scans), desc=what, disable=None))
