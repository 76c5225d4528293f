"""Gates: what a scan and its preparation must satisfy for there to be a result at all.

Every gate measures one number and holds it against limits; all are stored with the result, and one outside
its limits means no result and a reason. Limits come from what real T1-weighted heads measure (the comment
at each); benchmarks/raw_head.py prints the numbers of any folder of scans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import ScanError
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.foreground import (
    FEWEST_LEVELS,
    LARGEST_BRAIN_CM3,
    SMALLEST_ADULT_BRAIN_CM3,
    foreground_threshold,
    grey_levels,
    thinned,
)
from hz_runtime.model_space.morphology import eroded
from hz_runtime.model_space.recipe import THICKEST_MM
from hz_runtime.model_space.resample import resample
from hz_runtime.preparation.folds import LEAST_FOLDS, around_ventricles, folds
from hz_runtime.preparation.registration import LEAST_SIMILARITY, WILL_DO, scales
from hz_runtime.preparation.template import Template
from hz_runtime.preparation.view import View, view_of

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
INFINITE = float("inf")
NAMES = (
    "intensities", "slice thickness", "field of view", "grey levels", "similarity", "folds", "size",
    "coverage", "contrast", "brain volume", "brain shape", "placement", "capture",
)  # of all gates, in the order they are asked; folds only where similarity is low  # fmt: skip

SMALLEST_VIEW_MM = 100.0  # an adult brain is about 140 x 170 x 120 mm
AIR_HU = -750.0  # air is -1000 in computed tomography, fat -100
MOST_AIR_HU = 0.02  # share of voxels
TISSUE_HU = 200.0  # either way from 0: the median of a head's tissue; else it is MRI that somebody shifted
BRAIN_CM3 = (SMALLEST_ADULT_BRAIN_CM3, LARGEST_BRAIN_CM3)
STRETCH = (0.72, 1.45)  # brain to template along any axis: real heads 0.96 to 1.30
LEAST_OUTLINE = 0.85  # Dice with the template's mask: real heads 0.93 and more
# What large ventricles and much fluid leave of it; asked for only where the folds say that a brain is there.
SPOILED_SIMILARITY = 0.10
LEAST_CONTRAST = 1.05  # white over grey matter: T1w 1.15 to 1.58
LEAST_COVERAGE = 0.95  # share of the template's brain that the scan's field of view holds
LEAST_WITHIN = 0.97  # share of the brain that falls on the template's grid
FARTHEST_MM = 8.0  # between the poses of the head and of the brain alone; real heads stay within 3


@dataclass(frozen=True)
class Verdict:
    """What one gate found.

    gate : its name.  value : what was measured, in `unit`.  low, high : the limits, infinite where there is
    none.  meaning : what a value outside the limits says, for people.
    """

    gate: str
    value: float
    low: float
    high: float
    unit: str
    meaning: str

    @property
    def passed(self) -> bool:
        return bool(self.low <= self.value <= self.high)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; a limit that is infinite is null."""
        limits = [None if not np.isfinite(limit) else limit for limit in (self.low, self.high)]
        value = float(f"{self.value:.5g}") if np.isfinite(self.value) else None
        return {
            "gate": self.gate, "passed": self.passed, "value": value, "limits": limits, "unit": self.unit,
        }  # fmt: skip

    def __str__(self) -> str:
        wanted = f"at least {self.low:g}" if self.value < self.low else f"at most {self.high:g}"
        value = float(f"{self.value:.3g}")  # three digits, and never 2.49e+03
        return f"{self.gate}: {value:g} {self.unit}".rstrip() + f" ({wanted} wanted): {self.meaning}"


class Refused(ScanError):
    """A gate failed: no result. `verdicts` are all gates up to and with that stage."""

    def __init__(self, verdicts: tuple[Verdict, ...]) -> None:
        failed = [v for v in verdicts if not v.passed]
        also = f"; also {', '.join(v.gate for v in failed[1:])}" if len(failed) > 1 else ""
        super().__init__(f"refused by the gate {failed[0]}{also}.")
        self.verdicts = verdicts

    @property
    def gates(self) -> tuple[dict[str, Any], ...]:
        """The verdicts in plain JSON types."""
        return tuple(v.to_dict() for v in self.verdicts)


def of_scan(volume: Volume, seen: View | None = None) -> tuple[Verdict, ...]:
    """The gates before anything is computed: geometry and intensities.

    seen : `view.view_of` the volume, where it is known.
    """
    thin, _ = thinned(volume)
    seen = seen or view_of(volume.data, volume.affine)
    view = float(min(s * (part.stop - part.start) for s, part in zip(volume.spacing, seen, strict=True)))
    return (
        Verdict(
            "intensities", _share_of_air_hu(thin), 0.0, MOST_AIR_HU, f"of voxels below {AIR_HU:g}",
            "this looks like a CT in Hounsfield units; hz reads T1-weighted MRI",
        ),
        Verdict(
            "slice thickness", float(volume.spacing.max()), 0.0, THICKEST_MM, "mm",
            "a 2D scan with thick slices; give the 3D T1-weighted series",
        ),
        Verdict(
            "field of view", view, SMALLEST_VIEW_MM, INFINITE, "mm",
            "no whole brain fits in; check the voxel sizes in the header",
        ),
        Verdict(
            "grey levels", float(grey_levels(thin)), FEWEST_LEVELS, INFINITE, "values",
            "a mask or a label map, not a scan; give the scan itself",
        ),
    )  # fmt: skip


def _share_of_air_hu(thin: F32) -> float:
    """Share of voxels as dark as air is in a CT; 0 where the tissue is not where a CT has it."""
    tissue = thin[thin > foreground_threshold(thin)]
    in_units = abs(float(np.median(tissue))) <= TISSUE_HU
    return float((thin < AIR_HU).mean()) if in_units else 0.0


def of_registration(
    volume: Volume, pose: F64, found: float, seen: F32, template: Template, part: View | None = None
) -> tuple[Verdict, ...]:
    """The gates of the affine registration: is there a head, whole, with T1 contrast, where it was put?

    pose : (4, 4) affine, scan's world to the template's.  found : `registration.similarity`.
    seen : the scan in template space through `pose`, (91, 109, 91).
    part : `view.view_of` the volume, where it is known.
    """
    low, _, high = scales(pose)
    worst = low if low / STRETCH[0] < STRETCH[1] / high else high  # the one nearer to its limit, or beyond
    within = np.zeros(volume.shape, np.float32, order="F")
    within[part or view_of(volume.data, volume.affine)] = 1
    view = resample(within, pose @ volume.affine, seen.shape, template.affine, template.mask)
    return (
        *_likeness(found, seen, template),
        Verdict(
            "size", worst, *STRETCH, "times to the template's", "no adult brain is of this size or proportion"
        ),
        Verdict(
            "coverage", float((view[template.mask] > 0.5).mean()), LEAST_COVERAGE, 1.0, "of the brain",
            "the scan's field of view cuts the brain off",
        ),
        Verdict(
            "contrast", contrast(seen, template, spoiled=found < WILL_DO), LEAST_CONTRAST, 10.0,
            "white over grey matter", "this is not T1-weighted (a FLAIR, a T2, an EPI?), or not a brain",
        ),
    )  # fmt: skip


def _likeness(found: float, seen: F32, template: Template) -> tuple[Verdict, ...]:
    """The gate of similarity, and where it leaves a doubt that of folds, which ventricles do not spoil.

    With its folds where the template has them, a brain is not refused for what its ventricles cost.
    """
    measured = folds(seen, template) if found < WILL_DO else None
    spoiled = measured is not None and measured >= LEAST_FOLDS
    verdict = Verdict(
        "similarity", found, SPOILED_SIMILARITY if spoiled else LEAST_SIMILARITY, 1.0,
        "correlation with the template",
        "nothing like a T1-weighted brain was found from any start: another object, another contrast, or a "
        "head that was lost; if it is a T1-weighted head, give its brain:  --brain-mask FILE",
    )  # fmt: skip
    if measured is None:
        return (verdict,)
    return verdict, Verdict(
        "folds", measured, LEAST_FOLDS, 1.0, "correlation of the fine pattern",
        "no folds where the template has them: another object, another contrast, or a lost head; if it is a "
        "T1-weighted head, give its brain:  --brain-mask FILE",
    )  # fmt: skip


def contrast(seen: F32, template: Template, *, spoiled: bool = False) -> float:
    """Median intensity where the template is white matter over that where it is grey; (91, 109, 91).

    spoiled : by large ventricles, which lie where the template has white matter: only what is far from them.
    """
    third, half, bright = np.percentile(template.data[template.mask], [20, 50, 75])
    white = template.data > bright
    grey = (template.data > third) & (template.data < half) & eroded(template.mask, 2)
    if spoiled:
        far = ~around_ventricles(template)
        white, grey = white & far, grey & far
    dark = float(np.median(seen[grey]))
    return float(np.median(seen[white])) / dark if dark > 0 else 0.0


def of_brain(cm3: float, outline: float, within: float, apart_mm: float | None) -> tuple[Verdict, ...]:
    """The gates of the mask and of the final pose.

    cm3 : the brain's volume.  outline : Dice with the template's mask in template space.
    within : share of the brain on the template's grid.  apart_mm : mean distance of the brain's voxels
        between the poses of the head and of the brain alone; None where there was one registration.
    """
    verdicts = [
        Verdict("brain volume", cm3, *BRAIN_CM3, "cm3", "no adult brain; look at the mask"),
        Verdict(
            "brain shape", outline, LEAST_OUTLINE, 1.0, "Dice with the template",
            "the outline is not a brain's: the mask took too much or too little",
        ),
        Verdict(
            "placement", within, LEAST_WITHIN, 1.0, "of the brain on the template's grid",
            "the registration is wrong, or the mask holds more than the brain",
        ),
    ]  # fmt: skip
    if apart_mm is not None:
        verdicts.append(
            Verdict(
                "capture", apart_mm, 0.0, FARTHEST_MM, "mm between the head's pose and its brain's",
                "the head and the brain alone come to different places; give a skull-stripped scan",
            )
        )  # fmt: skip
    return tuple(verdicts)
