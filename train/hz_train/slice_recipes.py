"""The model space of networks of slices: the grid whose axial slices they read."""

from __future__ import annotations

from dataclasses import replace

from hz_runtime.errors import UsageError
from hz_runtime.model_space.recipe import Recipe, Shape

# The 182 x 218 x 182 voxels of 1 mm of the MNI152 template, and two more at each upper end: networks that
# halve a slice twice need sizes that 4 divides, and a grid that is larger from the start costs no resampling.
MILLIMETRE: Shape = (184, 220, 184)
READ_MM = 80.0  # Bashyam 2020: the middle 80 slices, of 1 mm
LEAST = 24  # pixels a side that the discriminator's five convs need


def slice_recipe(
    grid: Shape = MILLIMETRE, slices: int | None = None, intensity: str = "percentile"
) -> Recipe:
    """The recipe of a slice system.

    grid : (D, H, W) voxels over the template's field of view. Up to 91 x 109 x 91 they are taken from the
        2 mm template, as in Komandur 2023; larger ones from that of 1 mm.
    slices : middle axial slices that a predictor reads; None for those of 80 mm.
    intensity : see `hz_runtime.model_space.intensity`. Min-max leaves a slice's brightness to the
        one brightest voxel of its scan; percentiles do not.
    Raises UsageError for a grid that the networks cannot take.
    """
    if any(n % 4 for n in grid[:2]) or min(grid) < LEAST:
        raise UsageError(
            f"slices of {grid[0]} x {grid[1]} of {grid[2]} cannot be trained on.",
            f"Give sizes of at least {LEAST}, the first two divisible by 4, such as 184,220,184 or 64,64,64.",
        )
    coarse = Recipe()
    fine = any(n > m for n, m in zip(grid, coarse.template_shape, strict=True))
    shape, spacing = (MILLIMETRE, 1.0) if fine else (coarse.template_shape, coarse.template_spacing_mm)
    recipe = Recipe(template_shape=shape, template_spacing_mm=spacing, grid_shape=grid, intensity=intensity)
    return reading(recipe, slices)


def reading(recipe: Recipe, slices: int | None = None) -> Recipe:
    """The recipe whose predictors read so many middle slices; None for its own, or else those of 80 mm."""
    depth = recipe.grid_shape[2]
    if slices is None:
        millimetres = recipe.template_shape[2] * recipe.template_spacing_mm
        slices = recipe.middle_slices or min(depth, round(READ_MM * depth / millimetres))
    if not 1 <= slices <= depth:
        raise UsageError(f"a scan has {depth} slices, not {slices}.", "Choose --slices among them.")
    return replace(recipe, middle_slices=slices)
