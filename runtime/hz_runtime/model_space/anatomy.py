"""Shares of fluid and size of a harmonized brain: whether a person looks like those an age network knows.

Measured on the harmonized grid, where all sites have one contrast, inside the outline of the scan that it was
made from. Old brains have wide ventricles: a network that never saw such answers with the ages it knows.

What it does not know: whether an age would be right. A person of the training's anatomy may be of any age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hz_runtime.model_space.foreground import foreground_threshold
from hz_runtime.model_space.morphology import dilated, eroded, filled
from hz_runtime.model_space.recipe import Recipe

F32 = NDArray[np.float32]

CLOSED = 2  # steps by which the outline closes sulci that are cut off from the air
DEPTH = 4  # steps below the outline, 11 to 14 mm: sulci end above it, ventricles lie below
DARK = 0.6  # of the deep tissue's median; darker is fluid, or a voxel that is mostly fluid


@dataclass(frozen=True)
class Measure:
    """One number by which people are compared.

    words : what it is.  factor, unit : of its value as people read it.
    slack : how many standard deviations beyond the training people's range are still like theirs.
    sides : "both", or "high" where only more is unlike them: little fluid may be a tight brain mask.
    """

    words: str
    factor: float
    unit: str
    slack: float
    sides: str


# Of 94 scans of people under 30 one is refused by these; of 43 of people over 60, 37.
MEASURES: Mapping[str, Measure] = {
    "deep_fluid_share": Measure("fluid deep in the brain (ventricles)", 100, "%", 0.5, "high"),
    "fluid_share": Measure("fluid in and around the brain", 100, "%", 0.5, "high"),
    # Shares of the inner and of the whole brain: what is a little much of both is a lot.
    "both_fluid_shares": Measure("fluid deep in the brain plus fluid in all of it", 100, "%", 0.5, "high"),
    "outline_cm3": Measure("volume inside the brain's outline", 1, "cm3", 1.0, "both"),
}


def anatomy(harmonized: F32, model_input: F32, recipe: Recipe) -> dict[str, float]:
    """The measures of MEASURES of one scan.

    harmonized, model_input : (D, H, W) float32 in [0, 1], after and before the harmonizer; where there is
        none, twice the same.
    Shares are of the voxels inside the outline, and inside its deep part; 0 where that has no voxels.
    """
    rim = CLOSED + 1
    brain = np.pad(model_input > foreground_threshold(model_input), rim)
    inside = filled(eroded(dilated(brain, CLOSED), CLOSED))
    deep = eroded(inside, DEPTH)
    around = (slice(rim, -rim),) * 3
    inside, deep, brain = inside[around], deep[around], brain[around]
    voxel_cm3 = abs(float(np.linalg.det(recipe.grid_affine[:3, :3]))) / 1000
    in_deep = in_all = 0.0
    if (deep & brain).any():
        dark = harmonized < DARK * float(np.median(harmonized[deep & brain]))
        in_deep, in_all = float(dark[deep].mean()), float(dark[inside].mean())
    return {
        "deep_fluid_share": in_deep,
        "fluid_share": in_all,
        "both_fluid_shares": in_deep + in_all,
        "outline_cm3": float(inside.sum()) * voxel_cm3,
    }


def no_age_reasons(
    measures: Mapping[str, float], limits: Mapping[str, Mapping[str, float]]
) -> tuple[str, ...]:
    """Why a scan gets no age: measures beyond those of the age network's people by more than their slack.

    limits : {measure: {"min", "max", "sd"}}, a bundle's "anatomy"; measures that are not in it do not count.
    """
    reasons = []
    for name, measure in MEASURES.items():
        if name not in limits or name not in measures:
            continue
        value, seen = measures[name], limits[name]
        slack = measure.slack * seen["sd"]
        low = measure.sides == "both" and value < seen["min"] - slack
        if low or value > seen["max"] + slack:
            least, most, here = (f"{measure.factor * v:.4g}" for v in (seen["min"], seen["max"], value))
            reasons.append(
                f"no age: {measure.words} is {here} {measure.unit}, {least} to {most} {measure.unit} in the "
                "people that the age network was trained on"
            )
    return tuple(reasons)
