"""deepbet's network: a LinkNet of volumes, rebuilt so that its published weights can be exported.

Fisch et al. 2024, "deepbet: Fast brain extraction of T1-weighted MRI using convolutional neural networks";
LinkNet is Chaurasia and Culurciello 2017. The package ships traced TorchScript, which torch's exporter does
not take; with the same names for its parts, this module takes the weights as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (16, 16, 32, 64, 128)


def _unit(conv: nn.Module, channels: int, *, active: bool = True) -> nn.Sequential:
    """A convolution and its instance norm, which has no weights; with ReLU unless told otherwise."""
    parts = [conv, nn.InstanceNorm3d(channels)]
    return nn.Sequential(*parts, nn.ReLU()) if active else nn.Sequential(*parts)


class Block(nn.Module):
    """Two convolutions of 3 around a shortcut; (N, C, D, H, W), halved where `stride` is 2."""

    def __init__(self, source: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv3d(source, channels, 3, stride, 1, bias=False),
            nn.InstanceNorm3d(channels),
            nn.ReLU(),
            nn.Conv3d(channels, channels, 3, 1, 1, bias=False),
            nn.InstanceNorm3d(channels),
        )
        shortcut = nn.Conv3d(source, channels, 1, stride, bias=False)
        self.downsample = _unit(shortcut, channels, active=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.double_conv(x) + self.downsample(x))


class Down(nn.Module):
    """Two blocks, the first of which may halve the grid."""

    def __init__(self, source: int, channels: int, stride: int) -> None:
        super().__init__()
        self.block1 = Block(source, channels, stride)
        self.block2 = Block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.block2(self.block1(x))
        return answer


class Up(nn.Module):
    """Narrow to a quarter, double the grid where `stride` is 2, widen again."""

    def __init__(self, source: int, channels: int, stride: int) -> None:
        super().__init__()
        narrow = source // 4
        self.conv1 = _unit(nn.Conv3d(source, narrow, 1, bias=False), narrow)
        grown = nn.ConvTranspose3d(narrow, narrow, 3, stride, 1, output_padding=stride - 1, bias=False)
        self.tp_conv = _unit(grown, narrow)
        self.conv2 = _unit(nn.Conv3d(narrow, channels, 1, bias=False), channels)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.conv2(self.tp_conv(self.conv1(x)))
        return answer


class LinkNet3d(nn.Module):
    """(N, 1, D, H, W) normalised head -> (N, 1, D, H, W) probability of brain; D, H, W multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        first, *widths = WIDTHS
        self.init = nn.Sequential(
            nn.Conv3d(1, first, 7, 2, 3, bias=False),
            nn.InstanceNorm3d(first),
            nn.ReLU(),
            nn.MaxPool3d(3, 2, 1),
        )
        self.down0 = Down(first, widths[0], 1)
        self.down1 = Down(widths[0], widths[1], 2)
        self.down2 = Down(widths[1], widths[2], 2)
        self.down3 = Down(widths[2], widths[3], 2)
        self.up0 = Up(widths[3], widths[2], 2)
        self.up1 = Up(widths[2], widths[1], 2)
        self.up2 = Up(widths[1], widths[0], 2)
        self.up3 = Up(widths[0], first, 1)
        half = first // 2
        grown = nn.ConvTranspose3d(first, half, 3, 2, 1, output_padding=1)
        self.tp_conv1 = _unit(grown, half)
        self.conv = _unit(nn.Conv3d(half, half, 3, 1, 1), half)
        self.tp_conv2 = nn.ConvTranspose3d(half, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        start = self.init(x)
        one = self.down0(start)
        two = self.down1(one)
        three = self.down2(two)
        x = self.up0(self.down3(three)) + three
        x = self.up1(x) + two
        x = self.up2(x) + one
        x = self.up3(x) + start
        x = self.tp_conv2(self.conv(self.tp_conv1(x)))
        return torch.softmax(x, 1)[:, 1:]
