"""Training the slice harmonizer of Bashyam 2020: `hz_train.cyclegan_training` over slices.

One site or many sources to the reference; with several, the reverse generator is told which one it leads
back to. Losses, optimiser and schedule are those of the 3D system, so that the two differ in what they
look at and in nothing else; the networks are Zhu 2017's (`hz_train.slice_cyclegan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hz_runtime.errors import UsageError
from hz_runtime.model_space.recipe import Recipe
from hz_train.cohort import Cohort
from hz_train.cyclegan_training import Preset, System, train_cyclegan
from hz_train.fit import Schedule
from hz_train.slice_recipes import LEAST, MILLIMETRE, slice_recipe
from hz_train.slice_task import SliceCycleGANTask, SliceSettings

SLICES = System(
    "slice_cyclegan",
    SliceCycleGANTask,
    lambda settings: {"width": settings.width, "blocks": settings.blocks},
)

# Receive fields are left in: hz-run will send scans with theirs, and nothing here simulates others.
PRESETS = {
    "paper": Preset(Schedule(), SliceSettings(), n4=False, conditional=True),
    # For hours on a CPU, or minutes on a GPU: 64^3 volumes, and 6 blocks as Zhu 2017 for small images.
    "small": Preset(
        Schedule(epochs=40, batch=8, lr=2e-4, milestones=(25, 35), picture_every=5),
        SliceSettings(width=32, blocks=6, per_scan=16),
        n4=False,
        conditional=True,
    ),
    # Seconds to minutes: shows that a cohort is readable and that losses fall, no more than that.
    "quick": Preset(
        Schedule(epochs=2, batch=4, milestones=(), picture_every=1),
        SliceSettings(width=8, blocks=2, per_scan=4),
        n4=False,
        conditional=True,
    ),
}
GRIDS = {"paper": MILLIMETRE, "small": (64, 64, 64), "quick": (32, 32, 32)}


def train_canonical(
    cohort: Cohort,
    source: Sequence[str],
    target: str,
    out: Path,
    preset: Preset,
    held_out: float = 0.15,
    recipe: Recipe | None = None,
    device: str = "auto",
    licence: str = "",
    start_from: Path | None = None,
) -> Path:
    """Train source sites to the target site over slices; returns `out`/harmonizer.safetensors.

    Arguments and errors as of `train_cyclegan`; the preset's settings are SliceSettings.
    """
    recipe = recipe or slice_recipe()
    d, h, w = recipe.grid_shape
    if preset.settings.coarse and (d % 8 or h % 8 or w % 2 or min(d, h) < 2 * LEAST):
        raise UsageError(
            f"volumes of {d} x {h} x {w} cannot be halved for coarse epochs.",
            f"Give a --grid of {2 * LEAST} or more, the first two divisible by 8, or leave --coarse out.",
        )
    return train_cyclegan(
        cohort, source, target, out, preset, held_out, recipe, device, licence, start_from, SLICES
    )
