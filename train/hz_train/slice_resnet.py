"""The slice predictor of Bashyam et al. 2020: a 10-layer ResNet, then flatten, 512 units and one output.

The head is the paper's: FC 512, dropout 0.5, ReLU, 1 output; linear for age, a sigmoid for a diagnosis.
Of the trunk it is said that it has ten layers, convs and max-pools. Choices made here: five residual
blocks (He 2016) of two 3x3 convs, ten in all, of 32-64-128-256-256 channels, batch norm behind every conv,
a 1x1 conv on the shortcut where the channels change, and a max-pool behind every block.

Years are standardised as in `hz_train.age_cnn`: the training ages' mean and sd are buffers, so that a
network which has learned nothing answers the mean age.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN = 512
STAGES = 5
SMALLEST = 2**STAGES  # a slice is halved behind every block


class PooledBlock(nn.Module):
    """Two convs around a shortcut, then max-pooling: (S, C, d, h) to (S, C', d // 2, h // 2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(functional.relu(self.body(x) + self.shortcut(x)), 2)


class SliceResNet(nn.Module):
    """(S, 1, D, H) float32 in [0, 1] to (S, 1): years, or with `classify` the probability of the label.

    While training, a classifier answers the logit instead, for the sake of the loss's precision.

    shape : (D, H) of a slice, each at least 32.  width : channels of the first block.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, width: int = 32, classify: bool = False, *, shape: tuple[int, int]) -> None:
        super().__init__()
        if min(shape) < SMALLEST:
            raise ValueError(f"slices of {shape[0]} x {shape[1]} are smaller than {SMALLEST} x {SMALLEST}")
        self.shape, self.width, self.classify = (int(shape[0]), int(shape[1])), width, classify
        channels = [1, width, 2 * width, 4 * width, 8 * width, 8 * width]
        blocks = [PooledBlock(a, b) for a, b in pairwise(channels)]
        self.features = nn.Sequential(*blocks)
        flat = channels[-1] * (self.shape[0] // SMALLEST) * (self.shape[1] // SMALLEST)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(flat, HIDDEN), nn.Dropout(0.5), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("sd", torch.ones(1))

    def set_ages(self, ages: Tensor) -> None:
        """Standardise the output with the training subjects' ages, (n,) years."""
        self.mean.copy_(ages.mean().reshape(1))
        self.sd.copy_(ages.std().clamp_min(1e-3).reshape(1))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.features(x)).float()
        if self.classify:
            return answer if self.training else torch.sigmoid(answer)
        return answer * self.sd + self.mean
