"""Losses of Komandur 2023, for volumes and slices alike: LSGAN, cycle L1 x 10, identity L1 x 0.1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Weights:
    """Weight of each generator loss; `restore` is not in the paper and 0 in its preset.

    restore : L1 between a target-site scan and what the generator makes of the same scan after a
        simulated change of contrast and bias. It has a known right answer, which the unpaired losses
        lack, and teaches scanners that no cohort at hand holds.
    """

    adversarial: float = 1.0
    cycle: float = 10.0
    identity: float = 0.1
    restore: float = 0.0


def real_loss(scores: Tensor) -> Tensor:
    """Least squares against 1 (Mao 2017); scores (N, 1, ...): in (0, 1) of volumes, unbounded of slices."""
    return (scores.float() - 1).square().mean()


def fake_loss(scores: Tensor) -> Tensor:
    """Least squares against 0; scores as in `real_loss`."""
    return scores.float().square().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of both halves, so that the discriminator learns at half the generator's pace (Zhu 2017)."""
    return 0.5 * (real_loss(real) + fake_loss(fake))


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference, in float32 whatever the inputs' precision."""
    return functional.l1_loss(a.float(), b.float())


def total(parts: dict[str, Tensor], weights: Weights) -> Tensor:
    """Weighted sum of the generator's losses; a part that was not computed counts nothing."""
    return torch.stack([getattr(weights, name.split("_")[0]) * value for name, value in parts.items()]).sum()
