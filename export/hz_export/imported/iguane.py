"""IGUANe (Roca et al.): a residual 3D U-Net that maps T1-weighted brains of any site to one reference.

Rebuilt from the authors' description. In a bundle layers at full resolution are computed a slab of slices
at a time, which changes nothing: a convolution of a slab and its neighbouring slices is that of the volume
there, and instance norms take their means over all slabs, in two passes (the mean, then the mean distance
from it).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from hz_export.imported.published import FSL_FIELD, Published
from hz_export.imported.units import Scaled
from hz_export.imported.weight_file import WeightFile, load, named
from hz_runtime.errors import UsageError

Tensor = torch.Tensor
Rows = Callable[[int, int], Tensor]  # rows [start, stop) of a volume's first axis, those that it has

EPSILON = 1e-3
TOP = 4.0  # times the median become 1 in a prepared volume: hardly a vessel is brighter
# Slices at a time. Layers that read the same slices twice take different ones: an engine that saw twice the
# same arithmetic would keep the first result, at full size, until the second is needed.
SLAB, LAST_SLAB = 16, 20
LEVELS = (16, 32, 64, 128, 256)  # channels from full resolution down


class Block(nn.Module):
    """A convolution (or a transposed one), ReLU, and the parameters of the norm behind it."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.scale = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def raw(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        made = self.raw(x)
        return _applied(made, self.gain([made]))

    def gain(self, parts: Sequence[Tensor], twice: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """(factor, summand), each (N, C, 1, 1, 1), by which the norm over all of `parts` maps any of them.

        twice : rows that stand in two of the parts. They are counted and taken off again: parts without them
        would be copies, as large as the volume.
        """
        count = _voxels(parts) - _voxels(twice)
        mean = (_total(parts) - _total(twice)) / count if twice else _total(parts) / count
        apart = _total([(part - mean).abs() for part in parts])
        if twice:
            apart = apart - _total([(part - mean).abs() for part in twice])
        apart = apart / count
        shape = (1, -1, 1, 1, 1)
        factor = self.scale.reshape(shape) / (apart + EPSILON)
        return factor, self.offset.reshape(shape) - mean * factor


class Generator(nn.Module):
    """(N, 1, D, H, W), brain around 0 and its median and air 0, to the same: x + tanh of what the U-Net says.

    D, H and W must be divisible by 16.  levels : channels from full resolution down.
    """

    def __init__(self, levels: Sequence[int] = LEVELS) -> None:
        super().__init__()
        self.slabs = False  # layers at full resolution a slab of slices at a time, not as a whole
        blocks: list[Block] = []
        before = 1
        for channels in levels[:-1]:
            blocks.append(Block(nn.Conv3d(before, channels, 3, padding=1), channels))
            blocks.append(Block(nn.Conv3d(channels, channels, 4, stride=2, padding=1), channels))
            before = channels
        blocks.append(Block(nn.Conv3d(before, levels[-1], 3, padding=1), levels[-1]))
        for above, channels in zip(levels[:0:-1], levels[-2::-1], strict=True):
            blocks.append(Block(nn.ConvTranspose3d(above, channels, 4, stride=2, padding=1), channels))
            blocks.append(Block(nn.Conv3d(2 * channels, channels, 3, padding=1), channels))
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Conv3d(levels[0] + 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        blocks = [cast(Block, block) for block in self.blocks]
        return self._in_slabs(x, blocks) if self.slabs else self._ended(self._inner(x, blocks), x)

    def _in_slabs(self, x: Tensor, blocks: Sequence[Block]) -> Tensor:
        first, down, *inner, up, merge = blocks
        length = x.shape[2]

        def stem_raw(start: int, stop: int) -> Tensor:
            return torch.relu(_conv_rows(first.conv, lambda a, b: x[:, :, a:b], start, stop, length, 1))

        gain = first.gain([stem_raw(a, b) for a, b in _slabs(length, SLAB)])

        def stem(start: int, stop: int) -> Tensor:
            return _applied(stem_raw(start, stop), gain)

        halves = [torch.relu(_conv_rows(down.conv, stem, a, b, length, 2)) for a, b in _slabs(length, SLAB)]
        half = torch.cat(halves, 2)
        deep = self._inner(_applied(half, down.gain([half])), inner)
        spans = _slabs(length, LAST_SLAB)
        ups = [_up_rows(up.conv, deep, start, stop, length) for start, stop in spans]
        pairs = list(zip(ups, spans, strict=True))
        twice = [rows[:, :, : start - _below(start)] for rows, (start, _) in pairs if start]
        twice += [rows[:, :, stop - _below(start) :] for rows, (start, stop) in pairs if stop < length]
        gain_up = up.gain(ups, twice)
        merged = []
        for rows, (start, stop) in pairs:
            low, high = _below(start), min(length, stop + 1)
            both = torch.cat([_applied(rows, gain_up), stem(low, high)], 1)
            merged.append(torch.relu(_conv_padded(merge.conv, both, start == 0, stop == length, 1)))
        gain_merge = merge.gain(merged)
        return torch.cat(
            [
                self._ended(_applied(rows, gain_merge), x[:, :, start:stop])
                for rows, (start, stop) in zip(merged, spans, strict=True)
            ],
            2,
        )

    def _inner(self, x: Tensor, blocks: Sequence[Block]) -> Tensor:
        """From the resolution of x down and up to it again."""
        if len(blocks) == 1:
            return blocks[0].forward(x)
        wide, down, *inner, up, merge = blocks
        kept = wide.forward(x)
        return merge.forward(torch.cat([up.forward(self._inner(down.forward(kept), inner)), kept], 1))

    def _ended(self, rows: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.last(torch.cat([rows, x], 1))) + x


class Harmonizing(nn.Module):
    """Prepared volumes in [0, 1] to harmonized ones, by a generator in its own units."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.units = Scaled(TOP, offset=-1.0, air=0.0)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.units.back(self.generator(self.units(x)), x), min=0.0)


def in_slabs(network: nn.Module) -> nn.Module:
    """The generator in less memory, its first layer computed three times, with the same answers but for
    rounding."""
    made = cast(Generator, copy.deepcopy(network))
    made.slabs = True
    return made


def build(file: WeightFile, levels: Sequence[int] = LEVELS) -> nn.Module:
    """The generator with the tensors of a file of `save_weights`, whose layers stand in the network's order.

    Their names say nothing: Keras counts up layers over a whole session. Raises UsageError where the layers,
    or any tensor, are not the generator's.
    """
    network = Generator(levels)
    return load(network, file, _names(network, file))


def _names(network: Generator, file: WeightFile) -> dict[str, tuple[str, str]]:
    """Which tensor of the file goes where, layer by layer."""
    layers: dict[str, dict[str, str]] = {}
    for name in file.tensors:
        layer, _, rest = name.partition("/")
        layers.setdefault(layer, {})[rest.rpartition("/")[2]] = name
    wanted = [f"blocks.{k}" for k in range(len(network.blocks))] + [""]
    if len(layers) != len(wanted):
        raise UsageError(
            f"{file.name} has {len(layers)} layers with tensors, the last {named(list(layers)[-1])}; "
            f"IGUANe's generator has {len(wanted)}.",
            "Give the file that the authors published for it, unchanged.",
        )
    names = {}
    for block, (layer, tensors) in zip(wanted, layers.items(), strict=True):
        parts = {"kernel": "conv.weight", "bias": "conv.bias", "scale": "scale", "offset": "offset"}
        if not block:
            parts = {"kernel": "last.weight", "bias": "last.bias"}
        for leaf, key in parts.items():
            full = f"{block}.{key}" if block else key
            names[full] = (tensors.get(leaf, f"{layer}/{leaf}"), "conv3" if leaf == "kernel" else "")
    return names


def _voxels(parts: Sequence[Tensor]) -> int:
    return sum(part.shape[2] * part.shape[3] * part.shape[4] for part in parts)


def _total(parts: Sequence[Tensor]) -> Tensor:
    """(N, C, 1, 1, 1): the sum over all voxels of all parts.

    One axis after the other: engines add up one value after the next, and over half a million at a time the
    rounding of float32 would come to 1e-4 of the result. The middle one is a mean, since OpenVINO makes one
    sum of three in a row.
    """
    rows = []
    for part in parts:
        lines = part.sum(4, keepdim=True).mean(3, keepdim=True).sum(2, keepdim=True)
        rows.append(lines * float(part.shape[3]))
    return cast(Tensor, sum(rows))


def _slabs(length: int, rows: int) -> list[tuple[int, int]]:
    return [(start, min(length, start + rows)) for start in range(0, length, rows)]


def _below(start: int) -> int:
    return max(0, start - 1)


def _applied(x: Tensor, gain: tuple[Tensor, Tensor]) -> Tensor:
    return x * gain[0] + gain[1]


def _conv_rows(conv: nn.Module, rows: Rows, start: int, stop: int, length: int, stride: int) -> Tensor:
    """A convolution's answer to its input's rows [start, stop), of which it reads one more on either side."""
    first, last = _below(start), min(length, stop + 1)
    return _conv_padded(conv, rows(first, last), start == 0, stop == length, stride)


def _conv_padded(conv: nn.Module, x: Tensor, lowest: bool, highest: bool, stride: int) -> Tensor:
    """A convolution of rows that have their neighbours with them, but for those at an end of the volume."""
    made = cast(nn.Conv3d, conv)
    x = functional.pad(x, (0, 0, 0, 0, int(lowest), int(highest)))
    return functional.conv3d(x, made.weight, made.bias, stride, (0, 1, 1))


def _up_rows(conv: nn.Module, x: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Rows [start - 1, stop + 1) of a transposed convolution with ReLU, those that the volume has."""
    first, last = max(0, start // 2 - 1), min(x.shape[2], stop // 2 + 1)
    made = torch.relu(conv(x[:, :, first:last]))
    return made[:, :, _below(start) - 2 * first : min(length, stop + 1) - 2 * first]


NETWORK = Published(
    name="iguane",
    title="the generator of IGUANe (Roca et al. 2025), many sites to one reference",
    role="harmonizer",
    authors="Vincent Roca, Grégory Kuchcinski, Jean-Pierre Pruvo, Dorian Manouvriez, Renaud Lopes",
    paper="IGUANe: A 3D generalizable CycleGAN for multicenter harmonization of brain MR images, "
    "Medical Image Analysis 2025",
    licence="Apache-2.0",
    non_commercial=False,
    source="https://github.com/RocaVincent/iguane_harmonization",
    files=("harmonization/iguane_weights.h5",),
    form="keras",
    build=build,
    combine=lambda networks: Harmonizing(in_slabs(networks[0])),
    plain=lambda networks: Harmonizing(networks[0]),
    recipe=replace(
        FSL_FIELD,
        orientation="LAS",
        grid_shape=(160, 192, 160),
        crop_first=(11, 13, 11),
        crop_follows="edges",
        intensity="brain-median",
        intensity_top=TOP,
        filter_radius=3,
        filter_eps=2.5e-5,
        dof=6,
    ),
    preparation=(
        "fslreorient2std, HD-BET, N4 within the mask, FLIRT with 6 degrees of freedom to FSL's MNI152 of 1 "
        "mm (README.md, pipeline.py)",
        "divided by the median of the brain mask (median_norm.py; the constant 500 cancels in inference.py)",
        "cropped from 182 x 218 x 182 to 160 x 192 x 160 where the brain allows it (indices_crop there)",
        "x / 500 - 1 in the brain and 0 in air; back by (x + 1) * 500, never below 0 (inference.py)",
    ),
    remarks=(
        "A brain that does not fit into 160 x 192 x 160 voxels is cut by the grid and flagged; the authors "
        "take a larger grid for it.",
        "Voxels brighter than 4 times the brain's median are clipped to that; the authors clip nothing.",
    ),
    target="the reference of IGUANe",
)
