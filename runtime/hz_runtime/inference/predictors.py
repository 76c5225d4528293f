"""What a bundle can do, as numpy-in, numpy-out objects: harmonize a volume, predict an age or a diagnosis.

Whether a network reads whole volumes (Komandur 2023) or axial slices (Bashyam 2020) shows in its input alone.

They hold no state besides an opened backend and may be called from several threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.backends.base import Backend
from hz_runtime.bundle.age_calibration import age_flags, known_age_flags
from hz_runtime.errors import BundleError, GridMismatch, NoBrain, UnsupportedScan
from hz_runtime.inference.slice_wise import answer_of, of_volumes, slice_wise
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.anatomy import anatomy, no_age_reasons
from hz_runtime.model_space.feature_distance import FEATURES, MEASURE, FeatureReference
from hz_runtime.model_space.guided_filter import native_harmonized
from hz_runtime.model_space.levels import anchored
from hz_runtime.model_space.outliers import with_outlier_flags
from hz_runtime.model_space.recipe import ModelInput, Recipe, to_model_space

if TYPE_CHECKING:
    from hz_runtime.bundle.age_calibration import AgeInterval
    from hz_runtime.bundle.age_distribution import AgeDistribution
    from hz_runtime.bundle.store import AgeBias, ModelEntry

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Harmonized:
    """One scan before and after.

    native : (I, J, K) float32 on the scan's own grid, intensities in [0, 1], zero outside the brain.
    grid : (D, H, W) float32, the network's own output.  prepared : what the network was given.
    """

    native: F32
    grid: F32
    prepared: ModelInput


class Harmonizer:
    """Maps prepared volumes to the reference site.

    backend : an opened harmonizer network.  recipe : how scans are prepared for it.
    statistics, reference : of the bundle's training cohort, what `volume` compares a scan with; None for no
        comparison.
    harmonizes : False of what stands in a harmonizer's place (`pass_through`).
    """

    harmonizes = True

    def __init__(
        self,
        backend: Backend,
        recipe: Recipe,
        entry: ModelEntry,
        statistics: Mapping[str, Mapping[str, float]] | None = None,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        self.backend = backend
        self.recipe = recipe
        self.entry = entry
        self.statistics = statistics
        self.reference = reference

    @property
    def slice_wise(self) -> bool:
        """Whether the network reads axial slices. Then each volume runs by itself, however many are given."""
        return slice_wise(self.backend)

    def __call__(self, grids: F32) -> F32:
        """Harmonize prepared volumes, (D, H, W) or (N, D, H, W) float32 in [0, 1]; same shape back.

        The result is clipped to [0, 1], its white matter at the recipe's level where that has one. Raises
        GridMismatch for another grid, BackendError where the engine fails, NoBrain where the level cannot be
        found.
        """
        clipped: F32 = np.clip(of_volumes(self.backend)(_batch(grids, self.recipe)), 0, 1)
        return anchored(clipped, self.recipe).reshape(grids.shape)

    def volume(self, data: F32, affine: NDArray[np.float64]) -> Harmonized:
        """Harmonize a skull-stripped volume at its own resolution.

        data : (I, J, K), any real dtype and unit.  affine : (4, 4), voxel to world mm (RAS+), as in
        nibabel; any orientation. `Harmonized.native` comes back on the very same voxels.
        `Harmonized.prepared.flags` holds what hz-run would find unusual about the scan.
        Raises NoBrain for an empty volume, UnsupportedScan for another shape.
        """
        volume = _volume(data, affine)
        prepared = to_model_space(volume, self.recipe, self.statistics)
        prepared = with_outlier_flags(prepared, self.reference)
        grid = self(prepared.grid)
        native = native_harmonized(volume, prepared, grid, self.recipe)
        return Harmonized(volume.geometry.from_ras(native), grid, prepared)


@dataclass(frozen=True)
class Ages:
    """Predicted ages in years, (N,) float64.

    raw : what the network said.  corrected : with the bundle's age-bias correction; equal to raw where
    the bundle holds none.
    interval : (N, 2), lower and upper limits around `corrected`; None where the bundle holds none. It covers
    the true age with the probability of `AgePredictor.interval.level` for people and scans like those it was
    calibrated on, not for a scan that hz-run would flag.
    distances : (N,) float64, how unlike those of the training people the network's own features are; None
    where the bundle does not know theirs.
    spreads : (N,) float64, SD of the distribution that the network answers with, years; None of others.
    """

    raw: NDArray[np.float64]
    corrected: NDArray[np.float64]
    interval: NDArray[np.float64] | None = None
    distances: NDArray[np.float64] | None = None
    spreads: NDArray[np.float64] | None = None


class AgePredictor:
    """Predicts brain age from harmonized, prepared volumes.

    Of a slice-wise network it is the median over the middle slices of the recipe.

    bias : the correction of corrected ages, None for none.  interval : the bundle's prediction interval.
    age_range : of its training cohort, years; None where the bundle states none.
    anatomy : of its training people (`model_space.anatomy`); empty where the bundle does not know.
    features : of its training people (`model_space.feature_distance`), None likewise; then the network has a
        second output for them.
    distribution : that the network answers with, in the same output; None for one that gives an age alone.
    """

    def __init__(
        self,
        backend: Backend,
        bias: AgeBias | None,
        recipe: Recipe | None = None,
        interval: AgeInterval | None = None,
        age_range: Sequence[float] | None = None,
        anatomy: Mapping[str, Mapping[str, float]] | None = None,
        features: FeatureReference | None = None,
        distribution: AgeDistribution | None = None,
    ) -> None:
        self.backend = backend
        self.bias = bias
        self.recipe = recipe or Recipe()
        self.interval = interval
        self.age_range = age_range
        self.anatomy = anatomy or {}
        self.features = features
        self.distribution = distribution
        self.width = None if interval is None else interval.of(bias)
        self._answers = of_volumes(backend, self.recipe.middle_slices)

    def __call__(self, grids: F32) -> Ages:
        """Ages of (D, H, W) or (N, D, H, W) float32 volumes in [0, 1], harmonized first.

        Raises GridMismatch for another grid, BackendError where the engine fails.
        """
        batch, distances, spreads = _batch(grids, self.recipe), None, None
        if self.features is None and self.distribution is None:
            raw = self._answers(batch).astype(np.float64)
        else:
            outputs = self.backend.run(batch[:, None])
            raw = answer_of(outputs).reshape(-1).astype(np.float64)
            if self.features is not None:
                distances = self.features.distances(outputs[FEATURES])
            if self.distribution is not None:
                spreads = self.distribution.spread(outputs[FEATURES])
        shown = raw if self.bias is None else self.bias.corrected(raw)
        limits = None if self.width is None else self.width.limits(shown)
        return Ages(raw, shown, limits, distances, spreads)

    def measures(
        self, harmonized: F32, model_input: F32, ages: Ages | None = None, row: int = 0
    ) -> dict[str, float]:
        """What decides whether a scan gets an age; nothing where the bundle does not know its people.

        harmonized, model_input : (D, H, W) float32 in [0, 1], of `Harmonized.grid` and `prepared.grid`.
        ages : what the predictor said of it, at `row`; None to ask it again where that takes it.
        """
        found = anatomy(harmonized, model_input, self.recipe) if self.anatomy else {}
        if self.features is not None:
            ages, row = (self(harmonized), 0) if ages is None else (ages, row)
            assert ages.distances is not None
            found[MEASURE] = float(ages.distances[row])
        return found

    def no_age(self, measures: Mapping[str, float]) -> tuple[str, ...]:
        """Why hz-run gives a scan of these `measures` no age; nothing where it does."""
        reasons = no_age_reasons(measures, self.anatomy)
        if self.features is not None and MEASURE in measures:
            reasons += self.features.no_age_reasons(measures[MEASURE])
        return reasons

    def flags(
        self, age: float, scan: Sequence[str] = (), no_age: tuple[str, ...] = (), known: float | None = None
    ) -> tuple[str, ...]:
        """All reasons to look at a result before trusting it, as hz-run gives them.

        age : of `Ages.corrected`, years.  scan : flags of the scan itself, of `Harmonized.prepared`.
        no_age : of `no_age`; hz-run then shows no age.  known : age of the person, years.
        Returns `scan` and what its age adds: that it lies outside the training range, that its interval
        need not hold for a scan with any flag, and that the known age contradicts it.
        """
        if no_age:
            return (*scan, *no_age)
        found = (*scan, *age_flags(age, self.age_range))
        shown = age if np.isfinite(age) else None
        if self.interval is None or self.width is None or shown is None:
            return (*found, *known_age_flags(known, shown, None, self.age_range))
        limits = self.width.limits(np.array([age]))[0].tolist()
        found += self.interval.site_flags(limits)
        of_known = known_age_flags(known, shown, limits, self.age_range, self.interval)
        return (*found, *self.interval.caveat(found), *of_known)


class DiagnosisPredictor:
    """Predicts how probable the positive of two labels is, from harmonized, prepared volumes.

    labels : (negative, positive), as in the training cohort's `group` column.
    Of a slice-wise network it is the median over the middle slices of the recipe (Bashyam 2020). How probable
    a label is depends on how common it was in the training cohort; nothing here knows how common it is.
    Raises BundleError where the entry names no labels.
    """

    def __init__(self, backend: Backend, entry: ModelEntry, recipe: Recipe) -> None:
        if len(entry.labels) != 2:
            raise BundleError(
                f"{entry.file} predicts one of two labels, and the bundle does not say which.",
                "Export it again from its checkpoint:  hz-export --help",
            )
        self.backend = backend
        self.recipe = recipe
        self.labels = (entry.labels[0], entry.labels[1])
        self._answers = of_volumes(backend, recipe.middle_slices)

    def __call__(self, grids: F32) -> NDArray[np.float64]:
        """Probabilities (N,) float64 of (D, H, W) or (N, D, H, W) float32 volumes, harmonized first.

        Raises GridMismatch for another grid, BackendError where the engine fails.
        """
        return np.clip(self._answers(_batch(grids, self.recipe)).astype(np.float64), 0, 1)


def _volume(data: F32, affine: NDArray[np.float64]) -> Volume:
    """An array as the pipeline would have read it from a file."""
    if data.ndim != 3 or not data.size:
        raise UnsupportedScan(f"an array of shape {data.shape} is not one volume.", "Give (I, J, K).")
    if data.dtype.kind not in "biuf":
        raise UnsupportedScan(f"an array of {data.dtype} is no scan.", "Give real numbers.")
    geometry = Geometry.from_affine(data.shape, np.asarray(affine, np.float64))
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as such
        ras = np.asfortranarray(geometry.to_ras(data), np.float32)
    missing = ~np.isfinite(ras)
    if missing.all():
        raise NoBrain("the array holds no number that is finite.", "Look at where it comes from.")
    if missing.any():
        ras = np.asfortranarray(np.where(missing, np.float32(0), ras))
    return Volume(ras, geometry.ras_affine, geometry, "", str(data.dtype), missing if missing.any() else None)


def _batch(grids: F32, recipe: Recipe) -> F32:
    """(N, D, H, W) float32 of one or several volumes on the recipe's grid."""
    if grids.shape[-3:] != recipe.grid_shape or grids.ndim not in (3, 4):
        raise GridMismatch(
            f"volumes of shape {grids.shape}; the network takes {recipe.grid_shape}.",
            "Bring scans there with hz_runtime.model_space.recipe.to_model_space, or give native volumes to "
            "Harmonizer.volume.",
        )
    return np.ascontiguousarray(grids, np.float32).reshape(-1, *recipe.grid_shape)
