"""The units that published networks read, as arithmetic in their graphs: from [0, 1], air at 0, and back."""

from __future__ import annotations

import torch
from torch import nn


class Scaled(nn.Module):
    """(N, ...) float32 in [0, 1] to scale * x + offset where x > 0, and `air` elsewhere."""

    def __init__(self, scale: float, offset: float = 0.0, air: float = 0.0) -> None:
        super().__init__()
        self.scale, self.offset, self.air = scale, offset, air

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        units = x * self.scale
        if not self.offset and not self.air:
            return units
        brain = (x > 0).to(x.dtype)
        return (units + (self.offset - self.air)) * brain + self.air

    def back(self, units: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """From the network's units to those of x, (N, ...) in [0, 1]; 0 where that is."""
        return (units - self.offset) * (1 / self.scale) * (x > 0).to(x.dtype)


class Standardized(nn.Module):
    """(N, 1, D, H, W) to (x - mean) / SD, both of the voxels above 0, SD as a sample's; air moves with them.

    Any positive multiple of x gives the same, so that it does not matter what became 1.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        brain = (x > 0).to(x.dtype)
        axes = tuple(range(1, x.ndim))
        count = brain.sum(axes, keepdim=True)
        mean = (x * brain).sum(axes, keepdim=True) / count
        apart = x - mean
        variance = (apart * apart * brain).sum(axes, keepdim=True) / (count - 1)
        return apart / torch.sqrt(variance)
