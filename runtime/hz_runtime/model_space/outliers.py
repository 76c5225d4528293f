"""Outliers: scans that are unlike the others of their site, or unlike those a network was trained on.

The automatic quality check that Bashyam 2020 run before training, as robust statistics: every measure of a
scan (`recipe.describe`, where the brain lies, and how the scan correlates with the mean of the others) is
compared with the median and the median absolute deviation (MAD) of its cohort by the modified z-score of
Iglewicz & Hoaglin 1993, "How to detect and handle outliers", 0.6745 (x - median) / MAD.

Their threshold of 3.5 is for one measure. A scan here has a dozen, and sites are small: 3.5 would flag 7 % of
clean scans at 20 scans a site, 17 % at 10. THRESHOLD 5 flags 0.9 % and 5 % (independent normal measures,
11 of them, simulated).

What it does not know: whether a scan is bad. Half a brain, a rotated or a noisy one is found; so is a healthy
but unusual person.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import BundleError
from hz_runtime.model_space.foreground import foreground_threshold
from hz_runtime.model_space.recipe import WORDS, ModelInput
from hz_runtime.model_space.resample import resample, scaled_affine

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

THRESHOLD = 5.0
LEAST_SCANS = 8  # a median of fewer says nothing about the next one
COARSE = (16, 16, 16)  # voxels that correlations are taken on: 4 x 4 x 4 of the network's grid
NORMAL = 0.6745  # MAD of a standard normal distribution
SEEN = 0.02  # on the scale of [0, 1]; darker voxels are air in every scan


@dataclass(frozen=True)
class Measure:
    """One number by which scans are compared.

    floor : smallest standard deviation assumed, in the measure's unit: voxel counts of a small cohort can all
        be equal. sides : "both", or the only one that counts, "low" or "high".
    """

    floor: float
    sides: str = "both"


MEASURES: Mapping[str, Measure] = {
    "brain_cm3": Measure(15.0),
    "mean": Measure(0.01),
    "sd": Measure(0.005),
    "contrast": Measure(0.02),
    "extent_x_mm": Measure(4.0),
    "extent_y_mm": Measure(4.0),
    "extent_z_mm": Measure(4.0),
    "coverage": Measure(0.005, "low"),
    "shift_mm": Measure(2.0, "high"),  # by which preparation moved the brain
    "centre_x": Measure(0.005),  # of the brain, as a share of the field of view
    "centre_y": Measure(0.005),
    "centre_z": Measure(0.005),
    # As it is: Fisher's z stretches the usual .95 to .99 so far that a head turned by 25 degrees passes.
    "correlation": Measure(0.01, "low"),
}


@dataclass(frozen=True)
class OutlierScore:
    """How unlike its cohort a scan is.

    score : the largest modified z-score that counts; 0 where nothing could be compared.
    z : modified z-score of every measure, signed.  values : the measures themselves.
    reasons : one line for each measure beyond the threshold, the worst first; empty for a usual scan.
    """

    score: float
    z: Mapping[str, float]
    values: Mapping[str, float]
    reasons: tuple[str, ...]


def modified_z(values: F64, floor: float = 0.0) -> F64:
    """Modified z-scores, Iglewicz & Hoaglin 1993, of (n,) values; 0 where they do not vary.

    floor : smallest standard deviation assumed, in units of the values.
    """
    centre, mad = _centre(values)
    return _scores(values, centre, mad, floor)


def coarse(grid: F32) -> F32:
    """A prepared volume (D, H, W) on 16 x 16 x 16 voxels over the same box, averaged."""
    shape = grid.shape
    return resample(grid, np.eye(4), COARSE, scaled_affine(shape, np.eye(4), COARSE))


def measured(features: Mapping[str, float], grid: F32) -> dict[str, float]:
    """The measures of one prepared scan, but for its correlation.

    features : of `recipe.Prepared`, and `shift_mm` where it is known.  grid : (D, H, W) float32 in [0, 1].
    """
    found = {name: float(features[name]) for name in MEASURES if name in features}
    inside = grid > foreground_threshold(grid)
    for axis, name in enumerate("xyz"):
        profile = inside.sum(axis=tuple(k for k in range(3) if k != axis))
        at = (np.arange(profile.size) + 0.5) / profile.size
        found[f"centre_{name}"] = float(profile @ at / profile.sum())
    return found


def cohort_scores(
    measures: Sequence[Mapping[str, float]], volumes: F32, threshold: float = THRESHOLD
) -> list[OutlierScore]:
    """Every scan of one site against the others.

    measures : of each scan (`measured`).  volumes : (n, 16, 16, 16), `coarse` of each; a scan's correlation
    is with the mean of the others. Fewer than LEAST_SCANS are not compared: they score 0, without reasons.
    """
    if len(measures) < LEAST_SCANS:
        return [OutlierScore(0.0, {}, dict(m), ()) for m in measures]
    rows = _with_correlation(measures, volumes)
    usual = _statistics(rows)
    return [_judged(row, usual, threshold, "this site's scans") for row in rows]


def reference_of(grids: F32, features: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What a bundle carries to compare new scans with its training cohort, in plain JSON types.

    grids : (n, D, H, W) float32 in [0, 1], prepared.  features : of each.
    Returns {"n", "measures": {name: {"median", "mad"}}, "mean": base64 of (16, 16, 16) little-endian
    float16}, or {} for fewer than LEAST_SCANS scans.
    """
    if len(grids) < LEAST_SCANS:
        return {}
    volumes = np.stack([coarse(grid) for grid in grids])
    rows = _with_correlation([measured(f, g) for f, g in zip(features, grids, strict=True)], volumes)
    mean = np.ascontiguousarray(volumes.mean(0), "<f2")
    return {
        "n": len(rows),
        "measures": {
            name: {"median": round(centre, 6), "mad": round(mad, 6)}
            for name, (centre, mad) in _statistics(rows).items()
        },
        "mean": base64.b64encode(mean.tobytes()).decode(),
    }


def score(
    features: Mapping[str, float], grid: F32, reference: Mapping[str, Any], threshold: float = THRESHOLD
) -> OutlierScore:
    """One scan against what `reference_of` made of a training cohort.

    features, grid : as for `measured`. Raises BundleError where the reference is not one.
    """
    statistics, mean = _read(reference)
    values = measured(features, grid)
    values["correlation"] = _correlation(coarse(grid), mean)
    return _judged(values, statistics, threshold, "the training scans")


def with_outlier_flags(scan: ModelInput, reference: Mapping[str, Any] | None) -> ModelInput:
    """The scan with the reasons of its `score` behind its own flags; as it is without a reference.

    reference : of a bundle's cohort; bundles of before outlier scores have none. Raises as `score`.
    """
    if not reference:
        return scan
    return replace(scan, flags=(*scan.flags, *score(scan.features, scan.grid, reference).reasons))


def outlier_metadata(reference: Mapping[str, Any] | None) -> dict[str, Any]:
    """The object "outlier_score" of run.json: whether scans are scored, against how many, and from where on
    they are flagged; or why not."""
    if not reference:
        return {"available": False, "reason": "the bundle holds no reference of its training scans"}
    return {"available": True, "n": reference.get("n"), "threshold": THRESHOLD}


def _read(reference: Mapping[str, Any]) -> tuple[dict[str, tuple[float, float]], F64]:
    try:
        statistics = {
            str(name): (float(row["median"]), float(row["mad"]))
            for name, row in reference["measures"].items()
            if name in MEASURES
        }
        raw = base64.b64decode(reference["mean"], validate=True)
        mean = np.frombuffer(raw, "<f2").reshape(COARSE).astype(np.float64)
        if not np.isfinite(mean).all() or not np.isfinite(list(statistics.values())).all():
            raise ValueError("numbers that are not finite")
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        raise BundleError(
            f"the bundle's training reference cannot be read ({error}).", "Export the bundle again."
        ) from error
    return statistics, mean


def _with_correlation(measures: Sequence[Mapping[str, float]], volumes: F32) -> list[dict[str, float]]:
    total = volumes.sum(0, dtype=np.float64)
    others = [(total - volume) / (len(volumes) - 1) for volume in volumes]
    return [
        {**found, "correlation": _correlation(volume, mean)}
        for found, volume, mean in zip(measures, volumes, others, strict=True)
    ]


def _correlation(volume: F32, mean: F64) -> float:
    """Pearson's r of two (16, 16, 16) volumes where the mean is no air; 0 where one of them is constant."""
    seen = mean > SEEN
    if seen.sum() < 2:
        return 0.0
    a, b = volume[seen].astype(np.float64), mean[seen]
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0


def _centre(values: F64) -> tuple[float, float]:
    centre = float(np.median(values))
    return centre, float(np.median(np.abs(values - centre)))


def _scores(values: F64, centre: float, mad: float, floor: float) -> F64:
    scale = max(mad / NORMAL, floor)
    departure = np.asarray(values, np.float64) - centre
    return departure / scale if scale > 0 else np.zeros_like(departure)


def _statistics(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """(median, MAD) of every measure that all rows have."""
    names = [name for name in MEASURES if all(name in row for row in rows)]
    return {name: _centre(np.array([row[name] for row in rows], np.float64)) for name in names}


def _judged(
    values: Mapping[str, float], statistics: Mapping[str, tuple[float, float]], threshold: float, cohort: str
) -> OutlierScore:
    z: dict[str, float] = {}
    counted: dict[str, float] = {}
    for name, (centre, mad) in statistics.items():
        if name not in values:
            continue
        measure = MEASURES[name]
        z[name] = float(_scores(np.array(values[name]), centre, mad, measure.floor))
        counted[name] = {"both": abs(z[name]), "low": -z[name], "high": z[name]}[measure.sides]
    worst = sorted((n for n in counted if counted[n] > threshold), key=lambda n: -counted[n])
    reasons = tuple(
        f"{WORDS[name].format(f'{values[name]:.4g}')} is unlike {cohort} "
        f"(median {statistics[name][0]:.4g}, robust score {counted[name]:.1f}): look at it"
        for name in worst
    )
    return OutlierScore(max([0.0, *counted.values()]), z, dict(values), reasons)
