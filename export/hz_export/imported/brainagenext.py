"""BrainAgeNeXt (La Rosa et al. 2025): brain age from 5 to 95 years, the median of five MedNeXt encoders.

Rebuilt from the authors' script and the description of MedNeXt (Roy et al. 2023, size B, kernels of 3). What
widens and narrows a voxel's channels looks at no other voxel, so that a bundle computes it a slab of slices
at a time: at full resolution it would need twice the memory of all else.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from hz_export.imported.published import FSL_FIELD, Published
from hz_export.imported.units import Standardized
from hz_export.imported.weight_file import WeightFile, load
from hz_runtime.errors import UsageError

Tensor = torch.Tensor

WIDTH = 32  # channels at full resolution, doubled by each of four steps down
EXPANSIONS = (2, 3, 4, 4, 4)  # of the channels inside a block, by resolution
BLOCKS = 2  # at each resolution
HIDDEN = 64  # of the regression
SLAB, LARGE = 16, 1 << 20  # slices at a time, of volumes of more voxels than this
# A constant for torch's checkpointing while the authors trained: it has no part in answers.
DUMMY = "mednextv1.dummy_tensor"


class Block(nn.Module):
    """MedNeXt's block: each channel convolved by itself, normed over the volume, widened and narrowed, and
    added to what came in; with a stride of 2 to what came in at half resolution, through a convolution."""

    def __init__(self, before: int, after: int, expansion: int, stride: int = 1) -> None:
        super().__init__()
        self.slabs = False  # large volumes a slab of slices at a time, not as a whole
        self.apart = nn.Conv3d(before, before, 3, stride, padding=1, groups=before)
        self.norm = nn.InstanceNorm3d(before, affine=True)
        self.widen = nn.Conv3d(before, expansion * before, 1)
        self.narrow = nn.Conv3d(expansion * before, after, 1)
        self.past = nn.Conv3d(before, after, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        made = self.norm(self.apart(x))
        length = made.shape[2]
        large = length * made.shape[3] * made.shape[4] > LARGE
        rows = SLAB if self.slabs and large else length
        parts = [self._mixed(made[:, :, k : min(length, k + rows)]) for k in range(0, length, rows)]
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        return mixed + (x if self.past is None else self.past(x))

    def _mixed(self, x: Tensor) -> Tensor:
        made: Tensor = self.narrow(functional.gelu(self.widen(x)))
        return made


class Encoder(nn.Module):
    """(N, 1, D, H, W), standardized brains, to ages (N, 1), years. D, H and W: at least 32.

    width : channels at full resolution.  expansions, blocks : by resolution, and at each.
    """

    def __init__(
        self, width: int = WIDTH, expansions: Sequence[int] = EXPANSIONS, blocks: int = BLOCKS
    ) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, width, 1)
        self.stages = nn.ModuleList()
        self.downs = nn.ModuleList()
        for level, expansion in enumerate(expansions):
            channels = width << level
            if level:
                self.downs.append(Block(channels // 2, channels, expansion, stride=2))
            self.stages.append(nn.Sequential(*(Block(channels, channels, expansion) for _ in range(blocks))))
        self.hidden = nn.Linear(width << (len(expansions) - 1), HIDDEN)
        self.age = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.stages
        x = first(self.stem(x))
        for down, stage in zip(self.downs, others, strict=True):
            x = stage(down(x))
        made: Tensor = self.age(torch.relu(self.hidden(x.mean((2, 3, 4)))))
        return made


class MedianAge(nn.Module):
    """Prepared volumes in [0, 1] to the median (N, 1) of several networks' ages, an odd number of them."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.units = Standardized()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        units = self.units(x)
        ages = torch.cat([network(units) for network in self.networks], 1)
        half = len(self.networks) // 2 + 1
        return torch.topk(ages, half, dim=1, largest=False).values.amax(1, keepdim=True)


def in_slabs(network: nn.Module) -> nn.Module:
    """The encoder in less memory, with the same answers but for rounding."""
    made = copy.deepcopy(network)
    for block in made.modules():
        if isinstance(block, Block):
            block.slabs = True
    return made


def build(
    file: WeightFile, width: int = WIDTH, expansions: Sequence[int] = EXPANSIONS, blocks: int = BLOCKS
) -> nn.Module:
    """One encoder with the tensors of the authors' state dict. Raises UsageError for what does not fit."""
    if DUMMY in file.tensors:
        if file.tensors[DUMMY].shape != (1,):
            raise UsageError(
                f"{file.name} holds {DUMMY} of {file.tensors[DUMMY].shape}, and the authors' is (1,).",
                "Give the file that the authors published for it (hz-export import --list), unchanged.",
            )
        file = replace(file, tensors={k: v for k, v in file.tensors.items() if k != DUMMY})
    network = Encoder(width, expansions, blocks)
    return load(network, file, {key: (_name(key, len(expansions) - 1), "") for key in network.state_dict()})


def _name(key: str, deepest: int) -> str:
    """What the authors' file calls a tensor of `Encoder`.  deepest : the number of its last stage."""
    parts = {"apart": "conv1", "norm": "norm", "widen": "conv2", "narrow": "conv3", "past": "res_conv"}
    match key.split("."):
        case ["stages", level, block, part, leaf]:
            stage = "bottleneck" if int(level) == deepest else f"enc_block_{level}"
            return f"mednextv1.{stage}.{block}.{parts[part]}.{leaf}"
        case ["downs", level, part, leaf]:
            return f"mednextv1.down_{level}.{parts[part]}.{leaf}"
        case ["stem", leaf]:
            return f"mednextv1.stem.{leaf}"
        case [layer, leaf]:
            return f"regression_fc.{('hidden', '', '', 'age').index(layer)}.{leaf}"
    raise AssertionError(key)


NETWORK = Published(
    name="brainagenext",
    title="BrainAgeNeXt, brain age from 5 to 95 years (La Rosa et al. 2025)",
    role="age",
    authors="Francesco La Rosa, Jonadab Dos Santos Silva, Emma Dereskewicz, Azzurra Invernizzi and others",
    paper="BrainAgeNeXt: Advancing Brain Age Modeling for Individuals with Multiple Sclerosis, Imaging "
    "Neuroscience 2025",
    licence="Apache-2.0",
    non_commercial=False,
    source="https://huggingface.co/FrancescoLR/BrainAgeNeXt",
    files=tuple(f"BrainAge_{k}.pth" for k in range(1, 6)),
    form="torch",
    build=build,
    unused=(DUMMY,),
    combine=lambda networks: MedianAge([in_slabs(network) for network in networks]),
    plain=MedianAge,
    recipe=replace(
        FSL_FIELD,
        grid_shape=(160, 192, 160),
        crop_first=(11, 13, 11),
        crop_follows="middle",
        dof=12,
    ),
    preparation=(
        "skull stripped by SynthSeg, affine registration to MNI152 and N4 by ANTs (README.md)",
        "1 mm; the box of what is brighter than 0, padded and cut around its middle to 160 x 192 x 160 "
        "(prepare_transforms in BrainAge_estimation.py)",
        "less the mean and divided by the SD of voxels above 0, air moved with them (the same place)",
        "the median of five networks (main, the same place)",
    ),
    remarks=(
        "The authors add 0.062 times the person's age, less 2.96 years, to predictions of people over 18. "
        "That takes the age that is to be predicted; hz leaves it out; hz-calibrate age does without.",
        "The authors do not say how their template's axes run: they are taken to be RAS.",
        "The authors' encoder is a customized MedNeXt that was not at hand: it is taken for the encoder of "
        "MedNeXt-B up to its bottleneck, as the names and shapes of its file must prove when it is imported.",
        "A scan takes five networks one after another: some 10 times the multiplications of SFCN.",
    ),
    age_range=(5.0, 95.0),
)
