"""DeepBrainNet (Bashyam et al. 2020): brain age as the median over what a network says of 80 axial slices.

The authors published several networks as Keras models of one kind (Inception-ResNet-v2, VGG16, ResNet50,
DenseNet169); which one a file holds it says itself, and so it is rebuilt (`keras_graph`). That of Models/ has
the size of VGG16 with one hidden layer of 1024 units and Adam's two moments: 12 bytes for each of 15 241 025
weights, and 91 636 more.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from hz_export.imported.keras_graph import rebuilt
from hz_export.imported.published import FSL_FIELD, Published
from hz_export.imported.weight_file import WeightFile
from hz_runtime.errors import UsageError

WHITE, PERCENT = 185.0, 97.0  # the 97th percentile of a whole volume becomes 185 of 255


class OfSlices(nn.Module):
    """Slices (N, 1, D, H) in [0, 1], 255 being 1, to ages (N, 1), by a network of pictures of three channels.

    size : (height, width) of those; slices are brought there by their nearest pixels, as Keras's loader does.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis, wanted in zip((2, 3), self.size, strict=True):
            at = (torch.arange(wanted, dtype=torch.float64) + 0.5) * (x.shape[axis] / wanted)
            x = x.index_select(axis, at.long())
        ages: torch.Tensor = self.network(x.expand(-1, 3, -1, -1))
        return ages


def build(file: WeightFile) -> nn.Module:
    """The network that the file describes. Raises UsageError where it does not give one age a picture."""
    network, size, given = rebuilt(file)
    if given != (1,):
        raise UsageError(
            f"{file.name} gives {given!s:.80} for a slice, not one age.",
            "Give the file that its authors published.",
        )
    return OfSlices(network, size)


NETWORK = Published(
    name="deepbrainnet",
    title="DeepBrainNet (Bashyam et al. 2020), brain age from 80 axial slices",
    role="age",
    authors="Vishnu M. Bashyam, Guray Erus, Jimit Doshi, Mohamad Habes, Christos Davatzikos and others",
    paper="MRI signatures of brain age and disease over the lifespan based on a deep brain network and "
    "14 468 individuals worldwide, Brain 2020",
    licence="NOASSERTION",
    non_commercial=True,
    source="https://github.com/vishnubashyam/DeepBrainNet",
    files=("Models/DBN_model.h5",),
    sha256=("9257e98e9aff88bfcd83acdb1e74ffde762967503ef6df16c9270aa39d9941ea",),  # of its Git LFS pointer
    form="keras",
    build=build,
    combine=lambda networks: networks[0],
    recipe=replace(
        FSL_FIELD,
        orientation="LAS",
        grid_shape=(182, 218, 170),  # whose middle 80 slices are those from 45 to 124
        crop_first=(0, 0, 0),
        intensity="field-percentile",
        intensity_percent=PERCENT,
        intensity_top=255 / WHITE,
        middle_slices=80,
        dof=12,
    ),
    preparation=(
        "skull stripped and aligned to a template of 182 x 218 x 182 voxels of 1 mm (paper; files in Data/); "
        "ANTsPyNet's brain_age, by others, lists N4 before that",
        "multiplied by 185 / the 97th percentile of the volume, slices 45 to 124 of the last axis as 8-bit "
        "pictures (Script/Slicer.py)",
        "resized to the network's input by Keras's loader, divided by 255; the median over slices is the age "
        "(Script/Model_Test.py)",
    ),
    remarks=(
        "The authors' repository states no licence: ask them before you use the weights.",
        "The authors store slices as JPEG and round them to 8 bits on the way; hz does neither.",
        "The order of the axes is taken to be that of FSL's template. The headers of the authors' example "
        "scans (Data/), which may say it, were not read.",
    ),
    age_range=(3.0, 95.0),
    slice_wise=True,
)
