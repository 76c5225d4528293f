"""Whether the scanners that a harmonizer's training simulates are as different as real ones.

    python benchmarks/scanner_spread.py COHORT/participants.tsv HARMONIZER.safetensors [--draws N] [--seed N]

Four measures of what a scanner does to a brain, on the network's grid and in shares of white matter's level:
grey over white matter, noise and field left in white matter, and sharpness. Of one scan of every person as it
enters the network, and of the target's scans through N simulated scanners each, drawn as training draws them.
Prints JSON: the 2.5 % and 97.5 % quantile and the mean by site, and the share of real scans of other sites
that lie between the simulated quantiles.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter, gaussian_gradient_magnitude

from hz_runtime.model_space.levels import LEAST, otsu_thresholds
from machine import describe_machine

F32 = NDArray[np.float32]
SMOOTH = 4.0  # voxels; a receive field varies no faster
MEASURES = ("grey_over_white", "noise", "field", "sharpness")


def measures(volume: F32) -> dict[str, float]:
    """MEASURES of a volume in model space, (D, H, W) float32 in [0, 1].

    noise : standard deviation of neighbours' differences in inner white matter over root two.
    field : standard deviation of smoothed white matter (normalized convolution, sigma SMOOTH), both in shares
    of its median.  sharpness : 95 % quantile of the gradient in the brain, in shares of that median a voxel.
    """
    brain = volume > LEAST
    low, high = otsu_thresholds(volume[brain])
    white = volume > high
    grey = (volume > low) & ~white & brain
    level = float(np.median(volume[white]))
    inner = binary_erosion(white)
    steps = [np.diff(volume, axis=axis)[_pairs(inner, axis)] for axis in range(3)]
    noise = np.median(np.abs(np.concatenate(steps))) / 0.6745 / np.sqrt(2)  # robust: folds are no noise
    weight = gaussian_filter(inner.astype(np.float32), SMOOTH)
    smooth = gaussian_filter(np.where(inner, volume, 0).astype(np.float32), SMOOTH)
    field = (smooth / np.maximum(weight, 1e-6))[inner]
    gradient = gaussian_gradient_magnitude(volume, 0.5)[binary_erosion(brain, iterations=2)]
    return {
        "grey_over_white": float(np.median(volume[grey])) / level,
        "noise": float(noise) / level,
        "field": float(field.std()) / level,
        "sharpness": float(np.percentile(gradient, 95)) / level,
    }


def _pairs(inner: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Where a voxel and the next one along an axis are both inside."""
    first, last = [slice(None)] * 3, [slice(None)] * 3
    first[axis], last[axis] = slice(None, -1), slice(1, None)
    both: NDArray[np.bool_] = inner[tuple(first)] & inner[tuple(last)]
    return both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("harmonizer", type=Path)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    from hz_runtime.model_space.recipe import Recipe
    from hz_train.augment import Augmentation, scanner
    from hz_train.checkpoint import load_checkpoint
    from hz_train.cohort import Cohort, read_participants
    from hz_train.datasets import load

    about = load_checkpoint(given.harmonizer)[1]
    cohort = read_participants(given.cohort)
    first = Cohort(tuple({scan.subject: scan for scan in reversed(cohort.scans)}.values()))
    inputs = load(first, Recipe.from_dict(about["recipe"]))
    strength = Augmentation(**{**about["settings"]["augmentation"], "unchanged": 0.0})
    sites = np.array([scan.site for scan in inputs.scans])
    real = [measures(volume) for volume in inputs.grids]
    target = inputs.grids[sites == about["target"]]
    simulated = [
        measures(scanner(volume, np.random.default_rng([given.seed, number, draw]), strength))
        for number, volume in enumerate(target)
        for draw in range(given.draws)
    ]
    others = [row for row, site in zip(real, sites, strict=True) if site != about["target"]]
    found: dict[str, Any] = {
        "sites": {
            site: _spread([row for row, here in zip(real, sites, strict=True) if here == site])
            for site in first.sites
        },
        "simulated": _spread(simulated),
        "real_scans_of_others_inside": {name: _inside(others, simulated, name) for name in MEASURES},
        "strength": about["settings"]["augmentation"],
        "n": {"people": len(real), "simulated": len(simulated), "others": len(others)},
        "seed": given.seed,
        "machine": describe_machine(),
    }
    print(json.dumps(found, indent=2))


def _spread(rows: list[dict[str, float]]) -> dict[str, Any]:
    out: dict[str, Any] = {"n": len(rows)}
    for name in MEASURES:
        values = np.array([row[name] for row in rows])
        low, high = np.percentile(values, [2.5, 97.5])
        out[name] = {"low": float(low), "mean": float(values.mean()), "high": float(high)}
    return out


def _inside(real: list[dict[str, float]], simulated: list[dict[str, float]], name: str) -> float:
    low, high = np.percentile([row[name] for row in simulated], [2.5, 97.5])
    return float(np.mean([low <= row[name] <= high for row in real]))


if __name__ == "__main__":
    main()
