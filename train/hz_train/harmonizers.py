"""Harmonizer checkpoints in front of a predictor's training: either system's, read in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hz_runtime.errors import UsageError
from hz_runtime.model_space.levels import anchored
from hz_runtime.model_space.recipe import Recipe
from hz_train.apply import applied
from hz_train.checkpoint import load_checkpoint, without_prefix
from hz_train.fit import Run
from hz_train.progress import counted
from hz_train.slice_cyclegan import SliceGenerator
from hz_train.volume_cyclegan import Generator

F32 = NDArray[np.float32]
GENERATORS: dict[str, type[nn.Module]] = {"volume_cyclegan": Generator, "slice_cyclegan": SliceGenerator}


def harmonized(volumes: F32, checkpoint: Path, recipe: Recipe, run: Run) -> F32:
    """Volumes through a harmonizer checkpoint of either system, (n, D, H, W) float32.

    recipe : how the volumes were brought to model space. Raises UsageError for another kind of
    checkpoint, or one of another model space.
    """
    network, meta = read_harmonizer(checkpoint, recipe)
    network.to(run.device)
    each = counted(volumes, len(volumes), "scans through the harmonizer")
    made = np.concatenate([applied(network, volume[None], run) for volume in each])
    return anchored(made, Recipe.from_dict(meta["recipe"]))


def read_harmonizer(checkpoint: Path, recipe: Recipe) -> tuple[nn.Module, dict[str, Any]]:
    """(forward generator in evaluation mode on the CPU, meta) of a checkpoint. Raises UsageError as above."""
    tensors, meta = load_checkpoint(checkpoint)
    build = GENERATORS.get(str(meta.get("kind")))
    if build is None or not same_model_space(meta, recipe):
        raise UsageError(
            f"{checkpoint.name} is not a harmonizer of this recipe.",
            "Give a checkpoint of hz-train cyclegan, or of hz-train canonical with the same --grid.",
        )
    network = build(**meta["network"]).eval()
    network.load_state_dict(without_prefix("generator", tensors))
    return network, meta


def same_model_space(meta: dict[str, Any], recipe: Recipe) -> bool:
    """Whether a checkpoint's model space is that of `recipe`, whichever slices of a volume are read."""
    return bool(meta.get("recipe")) and Recipe.from_dict(meta["recipe"]).prepares_as(recipe)
