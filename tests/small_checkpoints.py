"""Tiny checkpoints, as hz-train writes them: both networks two channels wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WIDTH = 2
HELD_OUT = {"age": [float(a) for a in range(20, 60, 2)], "raw": [10 + 0.75 * a for a in range(20, 60, 2)]}


def base_meta() -> dict[str, Any]:
    from hz_runtime.model_space.recipe import Recipe

    cohort = {
        "n_scans": 31,
        "n_subjects": 29,
        "sites": {"leipzig": {"scans": 31, "subjects": 29, "age_range": [21.5, 63.0]}},
        "age_range": [21.5, 63.0],
        "age_mean": 37.25,
        "age_sd": 9.5,
    }
    return {
        "network": {"width": WIDTH},
        "recipe": Recipe().to_dict(),
        "statistics": {"brain_cm3": {"min": 950.0, "max": 1650.0, "mean": 1280.0, "sd": 110.0}},
        "cohort": {"training": cohort, "held_out": None},
        "split": "by subject, 15% of each site's subjects held out",
        "seed": 11,
        "schedule": {"epochs": 19, "lr": 3e-4},
        "licence": "CC0-1.0",
    }


def write_harmonizer(folder: Path, **changes: Any) -> Path:
    import torch

    from hz_train.checkpoint import save_checkpoint, with_prefix
    from hz_train.volume_cyclegan import Generator

    torch.manual_seed(5)
    network = Generator(WIDTH)
    with torch.no_grad():
        network.last.weight.mul_(0.8)  # far from the identity and from the clamp
        network.last.bias.fill_(0.05)
    own = {
        "kind": "volume_cyclegan",
        "sources": ["leipzig", "basel"],
        "target": "oslo",
        "metrics": {
            "travelling_head_after": {"value": 0.0375, "ci95": [0.031, 0.044], "n": 17, "how": "held out"}
        },
    }
    path = folder / "harmonizer.safetensors"
    save_checkpoint(path, with_prefix("generator", network.state_dict()), {**base_meta(), **own, **changes})
    return path


def write_age(folder: Path, **changes: Any) -> Path:
    import torch

    from hz_train.age_cnn import AgeCNN
    from hz_train.checkpoint import load_checkpoint, save_checkpoint, with_prefix

    torch.manual_seed(6)
    network = AgeCNN(WIDTH)
    network.set_ages(torch.tensor([20.0, 40.0, 60.0]))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):  # statistics that folding must not lose
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.05, 0.3)
    behind = folder / "harmonizer.safetensors"
    own = {
        "kind": "age_cnn",
        "sources": ["leipzig"],
        "target": None,
        "harmonizer": load_checkpoint(behind)[1]["sha256"] if behind.exists() else None,
        "held_out_predictions": {**HELD_OUT, "how": "4-fold cross-validation by subject, seed 11"},
        "metrics": {"mae_years": {"value": 6.125, "ci95": [5.0, 7.5], "n": 20, "how": "4-fold"}},
    }
    path = folder / "age.safetensors"
    save_checkpoint(path, with_prefix("age", network.state_dict()), {**base_meta(), **own, **changes})
    return path
