"""Published networks as one would write them in torch, behind nibabel, one brain from file to file.

    python benchmarks/eager_networks.py iguane|sfcn WEIGHTS SCAN OUT [--threads 2]

SCAN is a brain on FSL's MNI152 grid of 1 mm. What is done to it is what the authors' inference scripts do
(pipeline.py of IGUANe, examples.ipynb of SFCN), in float32 and on whole volumes. OUT is a volume (iguane) or
a text file with an age (sfcn). None of it comes from hz.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn
from torch.nn import functional

LEVELS = (16, 32, 64, 128, 256)
WINDOW = (slice(11, 171), slice(13, 205), slice(11, 171))  # 160 x 192 x 160 of 182 x 218 x 182


class Norm(nn.Module):
    """IGUANe's: by the mean absolute deviation, 0.001 added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1, 1))
        self.offset = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apart = x - x.mean((2, 3, 4), keepdim=True)
        return self.scale * (apart / (apart.abs().mean((2, 3, 4), keepdim=True) + 1e-3)) + self.offset


class Iguane(nn.Module):
    """(N, 1, D, H, W) to the same."""

    def __init__(self) -> None:
        super().__init__()

        def block(conv: nn.Module, channels: int) -> nn.Sequential:
            return nn.Sequential(conv, nn.ReLU(), Norm(channels))

        self.convs, self.downs = nn.ModuleList(), nn.ModuleList()
        before = 1
        for width in LEVELS[:-1]:
            self.convs.append(block(nn.Conv3d(before, width, 3, padding=1), width))
            self.downs.append(block(nn.Conv3d(width, width, 4, 2, 1), width))
            before = width
        self.middle = block(nn.Conv3d(before, LEVELS[-1], 3, padding=1), LEVELS[-1])
        self.ups, self.merges = nn.ModuleList(), nn.ModuleList()
        for above, width in zip(LEVELS[:0:-1], LEVELS[-2::-1], strict=True):
            self.ups.append(block(nn.ConvTranspose3d(above, width, 4, 2, 1), width))
            self.merges.append(block(nn.Conv3d(2 * width, width, 3, padding=1), width))
        self.last = nn.Conv3d(LEVELS[0] + 1, 1, 1)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        x, kept = given, []
        for conv, down in zip(self.convs, self.downs, strict=True):
            x = conv(x)
            kept.append(x)
            x = down(x)
        x = self.middle(x)
        for up, merge in zip(self.ups, self.merges, strict=True):
            x = merge(torch.cat([up(x), kept.pop()], 1))
        return torch.tanh(self.last(torch.cat([x, given], 1))) + given

    def load(self, path: Path) -> Iguane:
        """From a Keras file, layer by layer in its order."""
        import h5py

        blocks: list[Any] = []
        for conv, down in zip(self.convs, self.downs, strict=True):
            blocks += [conv, down]
        blocks.append(self.middle)
        for up, merge in zip(self.ups, self.merges, strict=True):
            blocks += [up, merge]
        with h5py.File(path) as file, torch.no_grad():
            layers = [
                [torch.from_numpy(file[layer][name][()]) for name in file[layer].attrs["weight_names"]]
                for layer in file.attrs["layer_names"]
            ]
            for block, (kernel, bias, scale, offset) in zip(blocks, layers[:-1], strict=True):
                block[0].weight.copy_(kernel.permute(4, 3, 0, 1, 2))
                block[0].bias.copy_(bias)
                block[2].scale.copy_(scale.reshape(1, -1, 1, 1, 1))
                block[2].offset.copy_(offset.reshape(1, -1, 1, 1, 1))
            self.last.weight.copy_(layers[-1][0].permute(4, 3, 0, 1, 2))
            self.last.bias.copy_(layers[-1][1])
        return self


class Sfcn(nn.Module):
    """(N, 1, 160, 192, 160) to logarithms of 40 probabilities; its keys are those of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor, self.classifier = nn.Sequential(), nn.Sequential()
        before = 1
        for k, width in enumerate((32, 64, 128, 256, 256, 64)):
            kernel = 3 if k < 5 else 1
            parts: list[nn.Module] = [
                nn.Conv3d(before, width, kernel, padding=kernel // 2),
                nn.BatchNorm3d(width),
            ]
            parts += [nn.MaxPool3d(2, 2)] if k < 5 else []
            self.feature_extractor.add_module(f"conv_{k}", nn.Sequential(*parts, nn.ReLU()))
            before = width
        self.classifier.add_module("average_pool", nn.AvgPool3d([5, 6, 5]))
        self.classifier.add_module("dropout", nn.Dropout(0.5))
        self.classifier.add_module("conv_6", nn.Conv3d(before, 40, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.log_softmax(self.classifier(self.feature_extractor(x)), 1).flatten(1)


def iguane(weights: Path, scan: Path, out: Path) -> None:
    network = Iguane().load(weights).eval()
    image = nib.load(scan)
    data = image.get_fdata()
    data = (data / np.median(data[data > 0]))[WINDOW] - 1
    mask = data > -1
    data[~mask] = 0
    with torch.no_grad():
        made = network(torch.from_numpy(data[None, None]).float()).numpy()[0, 0]
    made = (made + 1) * 500
    made[~mask] = 0
    made = np.maximum(made, 0)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in WINDOW]
    nib.save(nib.Nifti1Image(made, affine), out)


def sfcn(weights: Path, scan: Path, out: Path) -> None:
    network = torch.nn.DataParallel(Sfcn())
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()
    data = nib.load(scan).get_fdata()
    data = (data / data.mean())[WINDOW]
    with torch.no_grad():
        made = network.module(torch.from_numpy(data[None, None]).float()).numpy()[0]
    out.write_text(f"{np.exp(made) @ (42.5 + np.arange(40)):.6f}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=["iguane", "sfcn"])
    parser.add_argument("paths", nargs=3, type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    {"iguane": iguane, "sfcn": sfcn}[given.network](*given.paths)


if __name__ == "__main__":
    main()
