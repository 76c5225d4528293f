"""The 3D CycleGAN of Komandur et al. 2023: generator and discriminator.

What the paper states is followed to the letter; what it leaves open is decided here:

- normalisation layers have no affine parameters (PyTorch's default for InstanceNorm3d), and the last
  conv has neither norm nor activation, which together give 5,256,476 parameters, the paper's "5M";
- the output is linear while training and clamped to [0, 1] otherwise: inputs are min-max scaled, and a
  sigmoid would make the simplest map, the identity, the hardest to learn;
- the last conv starts as a copy of the input image (its image channel's centre tap is 1, everything
  else is small), so that training starts from "change nothing", which is the right prior for a map
  that must leave anatomy alone;
- many source sites mapped to one reference, which the paper names as future work, take the condition of
  Bashyam 2020 (`hz_train.condition`): planes beside the reverse generator's input, and then no norm in its
  first layer;
- the paper's sentence that all discriminator layers have stride 2 contradicts its own 6x6x6 output;
  the output size is taken as the specification, hence strides 2, 2, 2, 1, 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hz_train.condition import with_planes
from hz_train.padded_conv import PaddedConv3d

LAST_CONV_SCALE = 0.01  # of the usual initial weights, beside the copied image


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, padding=1), nn.InstanceNorm3d(outputs), nn.ReLU(inplace=True)
    )


def _upconv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose3d(inputs, outputs, 3, stride=2, padding=1, output_padding=1),
        nn.InstanceNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two convs around an identity; (N, C, D, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.body(x)
        return x + change


class Generator(nn.Module):
    """Maps volumes of one site to another; (N, 1, D, H, W) float32 in [0, 1] to the same shape.

    D, H and W must be divisible by 4. width : channels of the first conv, 32 in the paper.
    sites : with any, `forward` takes a second argument, the one-hot origin (N, sites).
    """

    def __init__(self, width: int = 32, sites: int = 0) -> None:
        super().__init__()
        self.width, self.sites = width, sites
        self.stem = _conv(1 + sites, width)
        if sites:
            del self.stem[1]  # the norm: it would take the condition out again
        self.down1 = _conv(width, 2 * width, stride=2)
        self.down2 = _conv(2 * width, 4 * width, stride=2)
        self.blocks = nn.Sequential(*(ResidualBlock(4 * width) for _ in range(5)))
        self.up1 = _upconv(8 * width, 2 * width)
        self.up2 = _upconv(4 * width, width)
        self.last = nn.Conv3d(width + 1, 1, 3, padding=1)
        with torch.no_grad():
            self.last.weight.mul_(LAST_CONV_SCALE)
            self.last.weight[0, width, 1, 1, 1] = 1.0
            if self.last.bias is not None:
                self.last.bias.zero_()

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        stem = self.stem(with_planes(x, condition))  # (N, 32, 64, 64, 64)
        down1 = self.down1(stem)  # (N, 64, 32, 32, 32)
        down2 = self.down2(down1)  # (N, 128, 16, 16, 16)
        deep = self.blocks(down2)
        up1 = self.up1(torch.cat([deep, down2], 1))  # (N, 64, 32, 32, 32)
        up2 = self.up2(torch.cat([up1, down1], 1))  # (N, 32, 64, 64, 64)
        out: Tensor = self.last(torch.cat([up2, x.to(up2.dtype)], 1))
        return out if self.training else out.clamp(0, 1)


class Discriminator(nn.Module):
    """PatchGAN: (N, 1, 64, 64, 64) to (N, 1, 6, 6, 6), each value the sigmoid score of one patch.

    2.77 million parameters, the paper's "3M". ReLU, not leaky, and instance norm on all but the first
    layer, the last included, as the paper says.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        channels = [1, width, 2 * width, 4 * width, 8 * width, 1]
        strides = [2, 2, 2, 1, 1]
        layers: list[nn.Module] = []
        for k, stride in enumerate(strides):
            layers.append(PaddedConv3d(channels[k], channels[k + 1], 4, stride, padding=1))
            if k > 0:
                layers.append(nn.InstanceNorm3d(channels[k + 1]))
            layers.append(nn.ReLU(inplace=True) if k < len(strides) - 1 else nn.Sigmoid())
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores
