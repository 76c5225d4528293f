"""The recipe: how a scan becomes what a network was trained on, as Komandur 2023 prepares it.

One place for training, calibration, parity and running, so that they cannot drift apart. The numbers
live in the bundle (`Recipe.to_dict`); the defaults here are those of the paper: the MNI152 template
grid of 91 x 109 x 91 voxels of 2 mm, resized to 64 x 64 x 64, min-max to [0, 1]. Networks of others read
other grids, such as windows of a template of 1 mm. Whatever units they want, a prepared volume is in [0, 1],
air at 0, all through hz; the rest is arithmetic inside their graphs.

What this module does not do: N4, skull stripping, and the six-degree registration (`preparation` does). It
expects a skull-stripped scan. A brain that sits elsewhere than the template's is shifted there (translation
only, see `ModelInput.shift_mm`); a rotation is not undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import BundleError, NoBrain
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.air import with_air_lowest
from hz_runtime.model_space.crop import FOLLOWS, cut, first_voxel, share_kept, shifted
from hz_runtime.model_space.foreground import (
    FEWEST_LEVELS,
    LARGEST_BRAIN_CM3,
    SMALLEST_BRAIN_CM3,
    air_of,
    centroid,
    foreground_threshold,
    grey_levels,
    share_within,
    thinned,
    volume_cm3,
)
from hz_runtime.model_space.intensity import LEVELS, RULES, scaled_by_level
from hz_runtime.model_space.missing import around_holes, missing_flags
from hz_runtime.model_space.resample import bounding_box, resample, scaled_affine

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

LEAST_COVERAGE = 0.5
LONGEST_AXIS = 1024  # of a grid, as of a scan (`header.ReadLimits`)
UPGRADE = "Upgrade hz (pip install --upgrade hz-mri), or export the bundle again with this one."
THICK_SLICES = 1.2  # times the smallest voxel size: else a whole grid is coarse, which no scanner makes
THICKEST_MM = 3.0  # the paper's voxel is 2.84 mm: thicker slices do not hold what its networks read
ORIENTATIONS = tuple(x + y + z for x in "RL" for y in "AP" for z in "SI")
# Stored only where they are set, so that a recipe equals one that was stored before they were known.
UNSTORED = (
    "middle_slices",
    "white_level",
    "intensity_top",
    "intensity_percent",
    "crop_first",
    "crop_follows",
    "filter_radius",
    "filter_eps",
    "dof",
)
WORDS: Mapping[str, str] = {  # how a flag says a feature's value
    "brain_cm3": "brain volume (brain_cm3) {} cm3",
    "mean": "mean brightness of the brain (mean) {} of its brightest voxel",
    "sd": "spread of the brain's brightness (sd) {} of its brightest voxel",
    "contrast": "contrast inside the brain (contrast) {}",
    "coverage": "share of the brain inside the template's field of view (coverage) {}",
    "extent_x_mm": "width of the brain (extent_x_mm) {} mm",
    "extent_y_mm": "length of the brain (extent_y_mm) {} mm",
    "extent_z_mm": "height of the brain (extent_z_mm) {} mm",
    "shift_mm": "distance by which preparation moved the brain (shift_mm) {} mm",
    "centre_x": "middle of the brain from left to right (centre_x) at {} of the field of view",
    "centre_y": "middle of the brain from back to front (centre_y) at {} of the field of view",
    "centre_z": "middle of the brain from foot to head (centre_z) at {} of the field of view",
    "correlation": "likeness to the mean scan (correlation) {}",
}
UNPLACED = (
    "its header tells left from right by default only (no sform, no qform; of an MGH, no goodRASFlag): "
    "it may be mirrored"
)


@dataclass(frozen=True)
class Recipe:
    """Preparation parameters, stored in a bundle and in every checkpoint.

    template_origin_mm and template_spacing_mm place voxel (0, 0, 0) and the grid in MNI152 world
    coordinates (RAS+). `centre_mm` is where the centroid of the foreground is expected, with
    `centre_tolerance_mm` around it; foreground as in `intensity.foreground_threshold`.
    orientation : of the grid's axes, RAS or mirrors of it; FSL stores its templates as LAS.
    crop_first : the grid is a window of the template's, at its spacing, from this voxel on, counted along the
    grid's own axes; none for one that is resized.  crop_follows : see `crop.first_voxel`.
    intensity : which of `intensity.RULES` or `intensity.LEVELS` brings a volume into [0, 1].
    intensity_top : how many times its level become 1; 0 for twice.  intensity_percent : of a percentile.
    filter_radius, filter_eps : of the guided filter, voxels of the grid and squared units; 0 for its own.
    dof : of the registration that the network expects, 6 or 12; 0 where that is open.
    middle_slices : how many axial slices around the middle of the grid's last axis a slice-wise predictor
    reads (Bashyam 2020 take 80); 0 for networks that read whole volumes.
    white_level : that of every harmonized volume (`levels`); 0 leaves them as the network makes them.
    """

    orientation: str = "RAS"
    template: str = "MNI152"
    template_shape: Shape = (91, 109, 91)
    template_origin_mm: Triple = (-90.0, -126.0, -72.0)
    template_spacing_mm: float = 2.0
    grid_shape: Shape = (64, 64, 64)
    placement: str = "centroid"
    centre_mm: Triple = (0.0, -21.0, 11.0)
    centre_tolerance_mm: float = 8.0
    intensity: str = "min-max"
    middle_slices: int = 0
    white_level: float = 0.0
    intensity_top: float = 0.0
    intensity_percent: float = 0.0
    crop_first: tuple[int, ...] = ()
    crop_follows: str = ""
    filter_radius: int = 0
    filter_eps: float = 0.0
    dof: int = 0

    def __post_init__(self) -> None:
        known: dict[str, tuple[object, ...]] = {
            "orientation": ORIENTATIONS,
            "placement": ("centroid", "none"),
            "intensity": (*RULES, *LEVELS),
            "crop_follows": FOLLOWS,
            "dof": (0, 6, 12),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                asked, all_known = f"{name} {getattr(self, name)!r:.80}", ", ".join(map(str, values))
                raise BundleError(f"the recipe asks for {asked}; this hz knows {all_known}.", UPGRADE)
        self._check_numbers()
        count = self.middle_slices
        if type(count) is not int or not 0 <= count <= self.grid_shape[2]:
            raise BundleError(
                f"the recipe asks for {count!r:.80} middle slices; its grid has {self.grid_shape[2]}.",
                "Train again with as many slices as the grid has, or fewer.",
            )

    def _check_numbers(self) -> None:
        """Raise BundleError for a grid that cannot be: said once, before any scan is read."""
        wrong = [
            name
            for name in ("template_shape", "grid_shape")
            if not _triple(getattr(self, name), int, 1, LONGEST_AXIS)
        ]
        wrong += [
            name
            for name in ("template_origin_mm", "centre_mm")
            if not _triple(getattr(self, name), (int, float), -1e6, 1e6)
        ]
        sizes = {"template_spacing_mm": 1e-3, "centre_tolerance_mm": 0.0}
        wrong += [name for name, least in sizes.items() if not _within(getattr(self, name), least, 1e6)]
        most = {"white_level": 1.0, "intensity_top": 1e6, "intensity_percent": 100.0, "filter_eps": 1.0}
        wrong += [name for name, end in most.items() if not _within(getattr(self, name), 0.0, end)]
        wrong += [] if _within(self.filter_radius, 0, 64, int) else ["filter_radius"]
        first = self.crop_first
        wrong += [] if first == () or _triple(first, int, -LONGEST_AXIS, LONGEST_AXIS) else ["crop_first"]
        wrong += ["crop_follows"] if self.crop_follows and not first else []
        wrong += [] if isinstance(self.template, str) and self.template.isalnum() else ["template"]
        if wrong:
            raise BundleError(
                f"the recipe's {wrong[0]} is {getattr(self, wrong[0])!r:.80}, which makes no grid.",
                "Export the bundle again from its checkpoints:  hz-export --help",
            )

    def prepares_as(self, other: Recipe) -> bool:
        """Whether both give the same volumes; which slices of them a network reads may differ, and what is
        done to the harmonized ones."""
        after: dict[str, Any] = {
            "middle_slices": 0,
            "white_level": 0.0,
            "filter_radius": 0,
            "filter_eps": 0.0,
        }
        first, second = (replace(recipe, **after) for recipe in (self, other))
        return first == second

    @property
    def template_affine(self) -> F64:
        """(4, 4) voxel to world mm of the template grid."""
        affine = np.diag([*(self.template_spacing_mm,) * 3, 1.0])
        affine[:3, 3] = self.template_origin_mm
        return affine

    @property
    def mirrored(self) -> tuple[int, ...]:
        """The grid's axes that run the other way than RAS."""
        return tuple(axis for axis in range(3) if self.orientation[axis] != "RAS"[axis])

    @property
    def field_affine(self) -> F64:
        """(4, 4) voxel to world mm of the template grid, its axes in the network's order."""
        affine = self.template_affine
        for axis in self.mirrored:
            affine[axis, 3] += affine[axis, axis] * (self.template_shape[axis] - 1)
            affine[axis, axis] *= -1
        return affine

    @property
    def grid_affine(self) -> F64:
        """(4, 4) voxel to world mm of the network's grid; of one that follows the brain, before it does."""
        if self.crop_first:
            return shifted(self.field_affine, self.crop_first)
        return scaled_affine(self.template_shape, self.field_affine, self.grid_shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as a bundle or checkpoint stores them.

        Those of UNSTORED are said only where they are set, so that a recipe equals one that was stored before
        they were known.
        """
        stored = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        for name in UNSTORED:
            if not stored[name]:
                del stored[name]
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Recipe:
        """The recipe of a bundle or checkpoint; keys left out have their defaults.

        Raises BundleError for keys that this hz does not know: they may ask for what it would not do, and a
        network would read volumes that are prepared otherwise than those it learned from.
        """
        if unknown := sorted(set(stored) - set(cls.__dataclass_fields__)):
            raise BundleError(
                f"the recipe asks for {', '.join(map(repr, unknown)):.200}, which this hz does not know.",
                UPGRADE,
            )
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**known)


@dataclass(frozen=True)
class ModelInput:
    """A scan on the network's grid, and what is needed to go back.

    grid : (D, H, W) float32 in [0, 1], of the recipe's grid and axes.
    low, high : the scan's own intensities that became 0 and 1, as `air.with_air_lowest` leaves them.
    shift_mm : translation (x, y, z) that was applied to bring the brain to the template's place.
    grid_affine : (4, 4) voxel of `grid` to the scan's own world mm (the shift undone).
    features : numbers describing size, position and contrast, compared with the training cohort's.
    flags : reasons to look at this scan before trusting its result; empty when there are none.
    """

    grid: F32
    low: float
    high: float
    shift_mm: Triple
    grid_affine: F64
    features: dict[str, float]
    flags: tuple[str, ...]


def to_model_space(
    volume: Volume, recipe: Recipe, statistics: Mapping[str, Mapping[str, float]] | None = None
) -> ModelInput:
    """Bring a skull-stripped scan onto the network's grid.

    statistics : per-feature min, max and sd of the training cohort, from the bundle; None skips the
        comparison.
    Raises NoBrain for a constant volume, a label map, one with less than 100 or more than 2300 cm3 of
    foreground, one whose brain holds no number in more than a hundredth of it, or one of which less than half
    lies within the template's field of view after placement.
    """
    missing, volume = volume.missing, with_air_lowest(volume)
    thin, thin_affine = thinned(volume)
    mask = thin > foreground_threshold(thin)
    cm3 = volume_cm3(mask, thin_affine)
    if cm3 < SMALLEST_BRAIN_CM3:
        raise NoBrain(
            f"only {cm3:.3g} cm3 of foreground: an adult brain has 900 to 1900.",
            "Give a skull-stripped T1-weighted head (a whole one to  hz-run --prepare), and check that the "
            "voxel sizes in its header are in mm.",
        )
    if cm3 > LARGEST_BRAIN_CM3:
        raise NoBrain(
            f"{cm3:.0f} cm3 of foreground: an adult brain has 900 to 1900.",
            "If the skull is still on, have it stripped:  hz-run --prepare SCAN  (else check that the voxel "
            "sizes in the header are in mm).",
        )
    if (levels := grey_levels(thin)) < FEWEST_LEVELS:
        raise NoBrain(
            f"only {levels} different intensities: a mask or a label map, not a scan.",
            "Give the T1-weighted scan that it was made from.",
        )
    offset = centroid(mask, thin_affine) - np.asarray(recipe.centre_mm)
    moved = recipe.placement == "centroid" and float(np.linalg.norm(offset)) > recipe.centre_tolerance_mm
    shift = -offset if moved else np.zeros(3)

    moved_by = np.eye(4)
    moved_by[:3, 3] = shift
    held = share_within(mask, moved_by @ thin_affine, recipe.template_shape, recipe.template_affine)
    if held < LEAST_COVERAGE:
        raise NoBrain(
            f"only {held:.0%} of the brain lies within the {recipe.template} field of view.",
            "Register the scan to the template first:  hz-run --prepare SCAN",
        )
    # What lies outside the scan's field of view is air, as bright as the scan's own air, which need not be 0.
    air = np.float32(air_of(thin) or 0.0)
    data = volume.data - air if air else volume.data
    placed = moved_by @ volume.affine
    field = resample(data, placed, recipe.template_shape, recipe.field_affine)
    window = bool(recipe.crop_first)
    if not window:
        field = resample(field, recipe.field_affine, recipe.grid_shape, recipe.grid_affine)
    if air:
        field += air
    holes: tuple[str, ...] = ()
    if missing is not None:
        tissue = volume.data > foreground_threshold(thin)
        holes = missing_flags(missing, around_holes(tissue, missing, volume.affine), volume.affine)
    if recipe.intensity in RULES:
        field, low, high = RULES[recipe.intensity](field)
    else:
        brain = volume.data > (foreground_threshold(thin) if air_of(thin) is None else air)
        on = recipe.field_affine if window else recipe.grid_affine
        inside = resample(brain.astype(np.float32), placed, field.shape, on) > 0.5
        field, low, high = scaled_by_level(
            field, inside, recipe.intensity, recipe.intensity_top, recipe.intensity_percent
        )
    grid, grid_affine = field, recipe.grid_affine
    if window:
        first = first_voxel(field > 0, recipe.crop_first, recipe.grid_shape, recipe.crop_follows)
        grid, grid_affine = cut(field, first, recipe.grid_shape), shifted(recipe.field_affine, first)
        held = min(held, share_kept(field > 0, first, recipe.grid_shape))
    grid_affine[:3, 3] -= shift

    features = {**describe(grid, recipe), "coverage": held}
    flags = [*holes, *_placement_flags(features), *outside(features, statistics or {})]
    flags += header_flags(volume)
    return ModelInput(grid, low, high, (shift[0], shift[1], shift[2]), grid_affine, features, tuple(flags))


def header_flags(volume: Volume) -> list[str]:
    """What a reader should look at before trusting a scan, by its header alone."""
    flags = []
    if not volume.geometry.placed:
        flags.append(UNPLACED)
    if volume.geometry.conflict:
        flags.append(
            f"its header disagrees with itself ({volume.geometry.conflict}): other programs may show it "
            "elsewhere, or mirrored"
        )
    thinnest, thickest = float(volume.spacing.min()), float(volume.spacing.max())
    if thickest > max(THICKEST_MM, THICK_SLICES * thinnest):
        flags.append(
            f"slices of {thickest:.3g} mm: the networks read 3D scans of up to {THICKEST_MM:g} mm, and what "
            "lies between thick slices is not in the scan"
        )
    return flags


def unregistered_flags(recipe: Recipe) -> tuple[str, ...]:
    """Of a brain that is taken as it is: that the recipe expects a registered one, where it does.

    Nothing is looked at here: a brain may have been registered elsewhere, which no header tells.
    """
    if not recipe.dof:
        return ()
    return (
        f"not registered in this run: the network expects brains registered to {recipe.template} with "
        f"{recipe.dof} degrees of freedom, as  hz-run --prepare  makes them of raw heads",
    )


def describe(grid: F32, recipe: Recipe) -> dict[str, float]:
    """Numbers that place a prepared scan among others.

    grid : (D, H, W) float32 in [0, 1] on the recipe's grid.
    Returns brain_cm3, extent_x/y/z_mm (left-right, back-front, foot-head), and the mean, sd and quartile
    ratio of the foreground's intensities in units of the full range.
    """
    mask = grid > foreground_threshold(grid)
    spacing = np.linalg.norm(recipe.grid_affine[:3, :3], axis=0)
    inside = grid[mask]
    lower, median, upper = np.percentile(inside, [25, 50, 75])
    features = {
        "brain_cm3": float(mask.sum() * spacing.prod() / 1000),
        "mean": float(inside.mean()),
        "sd": float(inside.std()),
        "contrast": float((upper - lower) / max(median, 1e-6)),
    }
    for name, span, step in zip("xyz", bounding_box(mask), spacing, strict=True):
        features[f"extent_{name}_mm"] = float((span.stop - span.start) * step)
    return features


def shape_alone(statistics: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """What of a training cohort's statistics holds whatever was done to the intensities: size and coverage.

    Extents along the axes are left out, too: they follow how a head lay where nothing was registered.
    """
    return {name: row for name, row in statistics.items() if name in ("brain_cm3", "coverage")}


def outside(features: Mapping[str, float], statistics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Flags for features further from the training cohort's range than one of its standard deviations."""
    flags = []
    for name, value in features.items():
        seen = statistics.get(name)
        if seen is None:
            continue
        low, high, slack = seen["min"], seen["max"], seen["sd"]
        if not low - slack <= value <= high + slack:
            what = WORDS.get(name, "{} " + name).format(f"{value:.4g}")
            flags.append(
                f"{what}, {low:.4g} to {high:.4g} in the scans that the networks were trained on: look at it"
            )
    return flags


def _within(value: object, least: float, most: float, kind: Any = (int, float)) -> bool:
    """Whether this is a number of that kind between two others; NaN is not, nor is True."""
    return isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most


def _triple(value: object, kind: Any, least: float, most: float) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(_within(n, least, most, kind) for n in value)


def _placement_flags(features: Mapping[str, float]) -> list[str]:
    """A shift alone is none: it is undone on the way back, and errors are no larger after it."""
    if features["coverage"] >= 0.98:
        return []
    return [
        f"{1 - features['coverage']:.0%} of the brain lies outside the template's field of view: register it "
        "first (hz-run --prepare)"
    ]
