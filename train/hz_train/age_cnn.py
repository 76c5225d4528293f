"""The age network of Komandur et al. 2023: five 3D convs, two linear layers, years out.

What the paper leaves open is decided here: 3x3x3 kernels without padding (the framework's default;
64^3 then reaches the flattening as 256 channels of 2x2x2), batch norm before LeakyReLU(0.01), 64 units
between the linear layers. The output is standardised with the training ages (`mean`, `sd`, kept as
buffers and so in every checkpoint and ONNX file): the loss stays of order one, and a network that has
learned nothing answers the mean age instead of zero. Grids too small for that (below 60 along an axis, for
quick studies) pad their convs by one voxel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hz_train.padded_conv import PaddedConv3d

HIDDEN = 64
SMALLEST_UNPADDED = 60  # an axis of 59 would be used up before the last conv


class AgeCNN(nn.Module):
    """(N, 1, D, H, W) float32 in [0, 1] to (N, 1) years.

    width : channels of the first conv, 32 in the paper.  grid : (D, H, W), 64^3 there; at least 8 each.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, width: int = 32, grid: tuple[int, ...] = (64, 64, 64)) -> None:
        super().__init__()
        self.width, self.grid = width, grid
        channels = [1, width, 2 * width, 4 * width, 8 * width, 8 * width]
        padding = 0 if min(grid) >= SMALLEST_UNPADDED else 1
        sizes = list(grid)
        layers: list[nn.Module] = []
        for k in range(5):
            layers += [
                PaddedConv3d(channels[k], channels[k + 1], 3, padding=padding),
                nn.BatchNorm3d(channels[k + 1]),
                nn.LeakyReLU(0.01, inplace=True),
            ]
            sizes = [n - 2 + 2 * padding for n in sizes]
            if k < 3:
                layers.append(nn.MaxPool3d(2))
                sizes = [n // 2 for n in sizes]
        self.features = nn.Sequential(*layers)
        flat = channels[-1] * math.prod(sizes)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(flat, HIDDEN), nn.LeakyReLU(0.01), nn.Linear(HIDDEN, 1)
        )
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("sd", torch.ones(1))

    def set_ages(self, ages: Tensor) -> None:
        """Standardise the output with the training subjects' ages, (n,) years."""
        self.mean.copy_(ages.mean().reshape(1))
        self.sd.copy_(ages.std().clamp_min(1e-3).reshape(1))

    def last_features(self, x: Tensor) -> Tensor:
        """What the last layer reads of it, (N, 64): all that an age is computed from."""
        vector: Tensor = self.head[:-1](self.features(x))
        return vector

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.features(x)).float()
        return answer * self.sd + self.mean
