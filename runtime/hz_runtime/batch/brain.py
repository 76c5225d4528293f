"""A stripped scan as its own file holds it, on the network's grid, and with its quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hz_runtime.io.volume import Volume
from hz_runtime.model_space.air import with_air_lowest
from hz_runtime.model_space.image_quality import Quality, image_quality
from hz_runtime.model_space.recipe import ModelInput, Recipe, to_model_space


@dataclass(frozen=True, eq=False)
class Brain:
    """read : the scan as its file holds it.  volume : with air as its lowest value, most often the same."""

    read: Volume
    volume: Volume
    model_input: ModelInput
    quality: tuple[Quality, ...]


def brain_of(
    volume: Volume, recipe: Recipe, statistics: Mapping[str, Mapping[str, float]] | None = None
) -> Brain:
    """A stripped scan that nobody corrected here. Raises what `recipe.to_model_space` raises."""
    model_input = to_model_space(volume, recipe, statistics)
    brain = with_air_lowest(volume)
    return Brain(volume, brain, model_input, image_quality(brain, corrected=False))
