"""An age network for a hundred people: a small CNN and a ridge regression on tissue maps, in one graph.

The CNN sees shapes wherever they lie, the ridge how much of which tissue lies where (Cole et al. 2017: a
Gaussian process on tissue maps does as well as a CNN). Their mean is the answer.

Both read soft maps of fluid, grey and white matter by intensity alone, halved in size: what a hundred people
are too few to teach a network first.

- CNN: five convs with batch norm, global average pooling, as Peng et al. 2021 found to need fewer people than
  a network that ends in large linear layers.
- Ridge: weights that are equal for mirrored places; the penalty is that of least error for people left out
  (Allen 1974).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

TISSUES = 3
# Of the level of white matter: where brain begins, fluid ends and white matter begins; how soft each edge is.
EDGES = (0.27, 0.685, 0.975)
WIDTHS = (0.05, 0.055, 0.036)
PENALTIES = tuple(float(10.0**k) for k in np.arange(-4, 2.1, 0.5))  # of the mean variance along a person


class TissueRidge(nn.Module):
    """`pooled_maps` of (N, 1, D, H, W) float32 in [0, 1] to (N, 1), in standard deviations of age.

    grid : (D, H, W), even.  level : of white matter in the scans that it will see.
    """

    level: Tensor

    def __init__(self, grid: Sequence[int] = (64, 64, 64), level: float = 0.55) -> None:
        super().__init__()
        self.register_buffer("level", torch.full((1,), float(level)))
        self.halved = tuple(n // 2 for n in grid)
        count = TISSUES * int(np.prod(self.halved))
        self.linear = nn.Linear(count, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.requires_grad_(False)  # fitted in closed form

    def maps(self, x: Tensor) -> Tensor:
        """(N, 3, D, H, W) shares of fluid, grey and white matter of every voxel."""
        x = x / self.level
        brain, tissue, white = (
            torch.sigmoid((x - edge) * (1 / width)) for edge, width in zip(EDGES, WIDTHS, strict=True)
        )
        return torch.cat([brain - tissue, tissue - white, white], 1)

    def pooled_maps(self, x: Tensor) -> Tensor:
        """(N, 3, D / 2, H / 2, W / 2) the same, halved in size."""
        return functional.avg_pool3d(self.maps(x), 2)

    def forward(self, pooled: Tensor) -> Tensor:
        answer: Tensor = self.linear(pooled.flatten(1))
        return answer

    @torch.no_grad()
    def fit(self, volumes: F32, targets: F64, people: Sequence[str]) -> float:
        """Set the weights from (n, D, H, W) volumes, (n,) targets of mean 0 and who was scanned; the penalty.

        Of PENALTIES the one whose mean squared error is least for people left out, each with all scans.
        """
        device = self.level.device
        rows = []
        for volume in volumes:
            x = torch.from_numpy(volume[None, None]).to(device)
            both = self.pooled_maps(x) + self.pooled_maps(x.flip(2))
            rows.append(both.flatten(1).cpu().numpy()[0])
        features = np.stack(rows)
        mean = features.mean(axis=0)
        features -= mean
        weights, penalty = dual_ridge(features, targets, people)
        self.linear.weight.copy_(torch.from_numpy(self._mirrored(weights)).reshape(1, -1))
        self.linear.bias.fill_(float(np.mean(targets) - mean.astype(np.float64) @ weights))
        return penalty

    def _mirrored(self, weights: F64) -> F32:
        """Weights of a scan and its mirror image together, as weights of the scan."""
        box = weights.reshape(TISSUES, *self.halved)
        return np.ascontiguousarray((box + box[:, ::-1]).ravel(), np.float32)


def dual_ridge(features: F32, targets: F64, people: Sequence[str]) -> tuple[F64, float]:
    """(weights, penalty) of a ridge regression with more features than scans.

    features : (n, p), centred.  targets : (n,).  people : (n,) who was scanned.
    Of PENALTIES, each times the mean variance along a scan, the one of least squared error for people left
    out, in closed form: (I - H)^-1 r within each person's scans, H the hat matrix (Allen 1974).
    """
    products = features.astype(np.float64) @ features.T.astype(np.float64)
    unit = float(np.trace(products)) / len(products)
    y = targets - targets.mean()
    names = np.asarray(people)
    groups = [np.flatnonzero(names == name) for name in np.unique(names)]
    best = (np.inf, PENALTIES[-1], np.zeros(len(y)))
    for penalty in PENALTIES:
        inverse = np.linalg.inv(products + penalty * unit * np.eye(len(y)))
        hat = products @ inverse + 1 / len(y)  # the mean is fitted, too
        left = y - hat @ y
        error = sum(
            float(np.square(np.linalg.solve(np.eye(g.size) - hat[np.ix_(g, g)], left[g])).sum())
            for g in groups
        )
        if error < best[0]:
            best = (error, penalty, inverse @ y)
    return features.T.astype(np.float64) @ best[2], best[1]


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    ]


class AgeEnsemble(nn.Module):
    """(N, 1, D, H, W) float32 in [0, 1] to (N, 1) years.

    width : channels of the first conv.  grid : (D, H, W), divisible by 16.  dropout : of the CNN's features.
    In training mode the answer is the CNN's alone; `combine` fits the ridge and joins both.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self, width: int = 16, grid: tuple[int, ...] = (64, 64, 64), dropout: float = 0.2, level: float = 0.55
    ) -> None:
        super().__init__()
        self.width, self.grid = width, grid
        self.features = nn.Sequential(
            *_conv(TISSUES, width),
            nn.MaxPool3d(2),
            *_conv(width, 2 * width),
            nn.MaxPool3d(2),
            *_conv(2 * width, 4 * width),
            nn.MaxPool3d(2),
            *_conv(4 * width, 8 * width),
            *_conv(8 * width, 8 * width),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(dropout)
        self.tissue = TissueRidge(grid, level)
        self.last = nn.Linear(8 * width + 1, 1)  # the CNN's features, and the ridge's answer
        with torch.no_grad():
            self.last.weight[:, -1] = 0
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("sd", torch.ones(1))

    def set_ages(self, ages: Tensor) -> None:
        """Standardise the output with the training subjects' ages, (n,) years."""
        self.mean.copy_(ages.mean().reshape(1))
        self.sd.copy_(ages.std().clamp_min(1e-3).reshape(1))

    def last_features(self, x: Tensor) -> Tensor:
        """What the last layer reads of it, (N, F): all that an age is computed from."""
        seen = self.tissue.pooled_maps(x)
        return torch.cat([self.features(seen), self.tissue(seen)], 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            seen = self.dropout(self.features(self.tissue.pooled_maps(x)))
            answer = functional.linear(seen, self.last.weight[:, :-1], self.last.bias)
        else:
            answer = self.last(self.last_features(x))
        years: Tensor = answer.float() * self.sd + self.mean
        return years

    @torch.no_grad()
    def combine(self, volumes: F32, ages: F32, people: Sequence[str]) -> float:
        """Fit the ridge to (n, D, H, W) training volumes and answer the mean of both members from now on.

        ages : (n,) years.  people : (n,) who was scanned. Returns the ridge's penalty.
        """
        targets = (ages.astype(np.float64) - float(self.mean)) / float(self.sd)
        penalty = self.tissue.fit(volumes, targets, people)
        self.last.weight[:, :-1].mul_(0.5)
        self.last.bias.mul_(0.5)
        self.last.weight[:, -1] = 0.5
        return penalty
