"""SFCN (Peng et al. 2021): brain age of UK Biobank's people, as probabilities of 40 ages a year apart.

Rebuilt from the authors' description. The first layer, whose output at full resolution is by far the largest,
is computed a slab of slices at a time: pooled rows of a slab with its neighbouring slices are those of the
whole volume.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hz_export.imported.published import FSL_FIELD, Published
from hz_export.imported.units import Scaled
from hz_export.imported.weight_file import WeightFile, load

Tensor = torch.Tensor

WIDTHS = (32, 64, 128, 256, 256, 64)  # channels of the layers; the last one's kernel is 1 x 1 x 1
BINS = 40
YOUNGEST = 42.0  # years, where the first bin starts
CENTRES = tuple(YOUNGEST + 0.5 + k for k in range(BINS))
TOP = 20.0  # times the mean of the field become 1 in a prepared volume: hardly a vessel is brighter
SLAB = 16  # slices of the first layer at a time; even, for they are pooled in pairs


class Layer(nn.Module):
    """Convolution, batch norm, ReLU and, but for the last, the largest of every 2 x 2 x 2 voxels.

    norm : None where it is part of the convolution already.
    """

    norm: nn.BatchNorm3d | None

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, after, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm3d(after)
        self.pooled = kernel > 1

    def forward(self, x: Tensor) -> Tensor:
        return self._ended(self.conv(x))

    def in_slabs(self, x: Tensor, rows: int) -> Tensor:
        """The same, from `rows` slices of x, (N, C, D, H, W), at a time."""
        length, parts = x.shape[2], []
        for start in range(0, length, rows):
            stop = min(length, start + rows)
            slab = x[:, :, max(0, start - 1) : min(length, stop + 1)]
            slab = functional.pad(slab, (0, 0, 0, 0, int(start == 0), int(stop == length)))
            made = functional.conv3d(slab, self.conv.weight, self.conv.bias, padding=(0, 1, 1))
            parts.append(self._ended(made))
        return torch.cat(parts, 2)

    def fold(self) -> None:
        """Put the norm into the convolution, whose factors and summands it only changes."""
        if self.norm is not None:
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = None

    def _ended(self, x: Tensor) -> Tensor:
        made = torch.relu(x if self.norm is None else self.norm(x))
        return functional.max_pool3d(made, 2) if self.pooled else made


class SFCN(nn.Module):
    """(N, 1, D, H, W), brains divided by the mean of their field, to the probabilities (N, 40) of CENTRES.

    D, H and W must be divisible by 32. The authors' last pooling of 5 x 6 x 5 voxels is the mean of all that
    their grid of 160 x 192 x 160 leaves.  widths : channels of the layers.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, bins: int = BINS) -> None:
        super().__init__()
        self.slab = 0  # slices of the first layer at a time; 0 for all
        last = len(widths) - 1
        before = (1, *widths)
        self.layers = nn.ModuleList(
            Layer(before[k], width, 1 if k == last else 3) for k, width in enumerate(widths)
        )
        self.classes = nn.Conv3d(widths[-1], bins, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (cast(Layer, layer) for layer in self.layers)
        x = first.in_slabs(x, self.slab) if self.slab else first(x)
        for layer in others:
            x = layer(x)
        return torch.softmax(self.classes(x.mean((2, 3, 4), keepdim=True)).flatten(1), 1)


class Age(nn.Module):
    """Prepared volumes in [0, 1] to the mean (N, 1) of the network's distribution, years.

    It ends in a linear layer that reads the probabilities, so that an exported graph can give these, too.
    """

    def __init__(self, network: nn.Module, centres: Sequence[float] = CENTRES) -> None:
        super().__init__()
        self.units = Scaled(TOP)
        self.network = network
        middle = (centres[0] + centres[-1]) / 2  # around it sums lose less to rounding
        self.mean = nn.Linear(len(centres), 1)
        self.mean.weight.data = torch.tensor([[centre - middle for centre in centres]])
        self.mean.bias.data = torch.tensor([middle])

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.mean(self.network(self.units(x)))
        return made


def in_slabs(network: nn.Module) -> nn.Module:
    """The network in less memory and arithmetic, with the same answers but for rounding."""
    made = cast(SFCN, copy.deepcopy(network))
    made.slab = SLAB
    for layer in made.layers:
        cast(Layer, layer).fold()
    return made


def build(file: WeightFile, widths: Sequence[int] = WIDTHS) -> nn.Module:
    """The network with the tensors of the authors' state dict. Raises UsageError for what does not fit."""
    network = SFCN(widths)
    names = {}
    for key in network.state_dict():
        kind, *rest = key.split(".")
        if kind == "layers":
            layer, part, leaf = rest
            names[key] = (f"feature_extractor.conv_{layer}.{('conv', 'norm').index(part)}.{leaf}", "")
        else:
            names[key] = (f"classifier.conv_{len(widths)}.{rest[0]}", "")
    return load(network, file, names)


NETWORK = Published(
    name="sfcn",
    title="SFCN, brain age of adults of UK Biobank (Peng et al. 2021)",
    role="age",
    authors="Han Peng, Weikang Gong, Christian F. Beckmann, Andrea Vedaldi, Stephen M. Smith",
    paper="Accurate brain age prediction with lightweight deep neural networks, Medical Image Analysis 2021",
    licence="MIT",
    non_commercial=False,
    source="https://github.com/ha-ha-ha-han/UKBiobank_deep_pretrain",
    files=("brain_age/run_20190719_00_epoch_best_mae.p",),
    form="torch",
    build=build,
    combine=lambda networks: Age(in_slabs(networks[0])),
    plain=lambda networks: Age(networks[0]),
    recipe=replace(
        FSL_FIELD,
        orientation="LAS",
        grid_shape=(160, 192, 160),
        crop_first=(11, 13, 11),
        intensity="field-mean",
        intensity_top=TOP,
        dof=12,
    ),
    preparation=(
        "UK Biobank's pipeline: brain extracted, bias field corrected, FLIRT with 12 degrees of freedom to "
        "FSL's MNI152 of 1 mm (README.md names the pipeline)",
        "divided by the mean of the field of 182 x 218 x 182 voxels, air counted (examples.ipynb)",
        "the middle 160 x 192 x 160 voxels (crop_center in dp_utils.py)",
        "40 bins of 1 year from 42 to 82; the age is the mean of the distribution (examples.ipynb)",
    ),
    remarks=(
        "An age is never outside 42.5 to 81.5 years, whoever was scanned.",
        "The spread of the distribution is the authors' own uncertainty. It is no interval: nobody has "
        "measured what it covers.",
        "44 to 80 years are the ages at which UK Biobank scans people in general, not counted in the "
        "authors' own sample.",
        "Voxels brighter than 20 times the mean of the field are clipped to that; the authors clip nothing.",
    ),
    age_range=(44.0, 80.0),
    centres=CENTRES,
)
