"""The slice CycleGAN of Bashyam et al. 2020: the 2D networks of Zhu 2017 on axial slices.

Choices made here, where a photograph and a brain in model space differ:

- one channel; norm layers have no affine parameters (PyTorch's default for InstanceNorm2d), convs have
  biases, as in Zhu's own code;
- the last conv's output is added to the input slice instead of going through tanh, and the conv starts at
  a hundredth of the usual weights: training starts from "change nothing", the right prior for a map that
  must leave anatomy alone, and as in `hz_train.volume_cyclegan`. The sum is linear while training and
  clamped to [0, 1] otherwise;
- a generator with a site condition (`hz_train.condition`) has no norm in its first layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hz_train.condition import with_planes

LAST_CONV_SCALE = 0.01  # of the usual initial weights, beside the input that is passed on


class _Norm(nn.InstanceNorm2d):
    """Instance norm that takes its gradient contiguous.

    Of a single image the next conv may send it channels-last; torch's backward on a CPU (2.13) then mixes the
    layouts, and weight gradients before it are wrong by more than their size.
    """

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(Tensor.contiguous)
        return out


class SliceBlock(nn.Module):
    """Two reflection-padded convs around an identity; (S, C, d, h) to the same shape. No ReLU at the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                nn.ReflectionPad2d(1),
                nn.Conv2d(channels, channels, 3),
                _Norm(channels),
                nn.ReLU(inplace=True),
            ]
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.body(x)
        return x + change


class SliceGenerator(nn.Module):
    """Maps axial slices of one site to another; (S, 1, D, H) float32 in [0, 1] to the same shape.

    D and H must be divisible by 4 and at least 8. width : channels of the first conv, 64 in Zhu 2017.
    blocks : residual blocks, 9 there for images of 256 x 256 and more, 6 for 128 x 128.
    sites : with any, `forward` takes a second argument, the one-hot origin (S, sites).

    c7s1-64, d128, d256, R256 x 9, u128, u64, c7s1-1: 11,365,633 parameters at the defaults.
    """

    def __init__(self, width: int = 64, blocks: int = 9, sites: int = 0) -> None:
        super().__init__()
        self.width, self.blocks, self.sites = width, blocks, sites
        stem: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(1 + sites, width, 7)]
        if sites == 0:
            stem.append(_Norm(width))
        layers: list[nn.Module] = [*stem, nn.ReLU(inplace=True)]
        for channels in (width, 2 * width):
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
                _Norm(2 * channels),
                nn.ReLU(inplace=True),
            ]
        layers += [SliceBlock(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1),
                _Norm(channels // 2),
                nn.ReLU(inplace=True),
            ]
        last = nn.Conv2d(width, 1, 7)
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), last)
        with torch.no_grad():
            last.weight.mul_(LAST_CONV_SCALE)
            if last.bias is not None:
                last.bias.zero_()

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        change: Tensor = self.layers(with_planes(x, condition))
        out = x + change
        return out if self.training else out.clamp(0, 1)


class SliceDiscriminator(nn.Module):
    """PatchGAN of Zhu 2017: (S, 1, D, H) to one score for each 70 x 70 patch, (S, 1, D / 8 - 2, H / 8 - 2).

    C64-C128-C256-C512 and a last conv, k=4, strides 2, 2, 2, 1, 1, leaky ReLU 0.2, instance norm on all
    layers but the first and the last, linear scores: 2,762,689 parameters. D and H at least 24.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        channels = [1, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for k, stride in enumerate((2, 2, 2, 1)):
            layers.append(nn.Conv2d(channels[k], channels[k + 1], 4, stride, padding=1))
            if k > 0:
                layers.append(_Norm(channels[k + 1]))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, 1, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores
