"""Tiny checkpoints of the slice-wise networks, as hz-train writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_checkpoints import HELD_OUT, base_meta

WIDTH = 4
MIDDLE = 24


def _recipe(middle: int = 0) -> dict[str, Any]:
    from hz_runtime.model_space.recipe import Recipe

    return Recipe(intensity="percentile", middle_slices=middle).to_dict()


def write_slice_harmonizer(folder: Path, **changes: Any) -> Path:
    import torch

    from hz_train.checkpoint import save_checkpoint, with_prefix
    from hz_train.slice_cyclegan import SliceGenerator

    torch.manual_seed(15)
    network = SliceGenerator(WIDTH, blocks=2)
    with torch.no_grad():
        network.layers[-1].weight.mul_(20)  # far from the identity it starts as
    own = {
        "kind": "slice_cyclegan",
        "network": {"width": WIDTH, "blocks": 2},
        "recipe": _recipe(),
        "sources": ["leipzig", "basel"],
        "target": "oslo",
    }
    path = folder / "canonical.safetensors"
    save_checkpoint(path, with_prefix("generator", network.state_dict()), {**base_meta(), **own, **changes})
    return path


def write_slice_predictor(folder: Path, predicts: str = "age", **changes: Any) -> Path:
    """A slice ResNet for "age" or "diagnosis", trained behind the harmonizer where there is one."""
    import torch

    from hz_train.checkpoint import load_checkpoint, save_checkpoint, with_prefix
    from hz_train.slice_resnet import SliceResNet

    torch.manual_seed(16)
    network = SliceResNet(WIDTH, classify=predicts == "diagnosis", shape=(64, 64))
    if predicts == "age":
        network.set_ages(torch.tensor([20.0, 40.0, 60.0]))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics that folding must not lose
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.05, 0.3)
    behind = folder / "canonical.safetensors"
    own = {
        "kind": "slice_resnet",
        "task": predicts,
        "network": {"width": WIDTH, "shape": [64, 64], "classify": predicts == "diagnosis"},
        "recipe": _recipe(MIDDLE),
        "sources": ["leipzig"],
        "target": None,
        "harmonizer": load_checkpoint(behind)[1]["sha256"] if behind.exists() else None,
    }
    if predicts == "age":
        own["held_out_predictions"] = {**HELD_OUT, "how": "4-fold cross-validation by subject, seed 11"}
    else:
        own["labels"] = ["control", "patient"]
        own["metrics"] = {"auc": {"value": 0.7125, "ci95": [0.6, 0.8], "n": 40, "how": "held out"}}
    path = folder / f"slice-{predicts}.safetensors"
    save_checkpoint(path, with_prefix("predictor", network.state_dict()), {**base_meta(), **own, **changes})
    return path
