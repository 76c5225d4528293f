"""The slice CycleGAN's task: `hz_train.cyclegan_task` over the axial slices of the same volumes.

Bashyam 2020 train on slices, so that a site with few scans still brings thousands of images. A slice is
drawn at random from all scans and heights of its side; slices without brain are left out, since there is
nothing to map in them and the discriminators would learn where air is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hz_runtime.errors import UsageError
from hz_train.augment import Augmentation, scanner
from hz_train.cyclegan_task import CycleGANTask, Images, Settings
from hz_train.slice_cyclegan import SliceDiscriminator, SliceGenerator

F32 = NDArray[np.float32]

BRAIN = 0.05  # intensity above which a pixel in model space counts as brain
LEAST_SHARE = 0.01  # of a slice's pixels that must be brain for it to be trained on


@dataclass(frozen=True)
class SliceSettings(Settings):
    """As for volumes, and what only slices have.

    augmentation : of each slice by itself; `scale` and `mixing` do not apply.
    width : channels of the generators' and discriminators' first conv, 64 in Zhu 2017.
    blocks : residual blocks of the generators.
    per_scan : slices drawn an epoch for each scan of the larger side, on average; 0 for all that hold brain.
    """

    width: int = 64
    blocks: int = 9
    per_scan: int = 0


class Slices:
    """The axial slices of volumes that hold brain, by index; views, not copies, until one is asked for.

    volumes : (n, D, H, W) float32. scan, height : (len(self),) int64, the volume and the place on its last
    axis. A slice holds brain where 1 % of its pixels are above 0.05.
    """

    def __init__(self, volumes: F32) -> None:
        self.volumes = volumes
        shares = [(volume > BRAIN).mean((0, 1)) for volume in volumes]
        self.scan, self.height = np.nonzero(np.array(shares).reshape(-1, volumes.shape[3]) >= LEAST_SHARE)

    def __len__(self) -> int:
        return len(self.scan)

    def __getitem__(self, index: int) -> F32:
        """(D, H), contiguous."""
        return np.ascontiguousarray(self.volumes[self.scan[index], :, :, self.height[index]])


class SliceCycleGANTask(CycleGANTask):
    """CycleGANTask whose images are slices: volumes in, trained on slices, volumes harmonized.

    D and H must be divisible by 4 (by 8 with coarse epochs) and at least 24 (48).
    """

    axes = 3  # of a batch: (N, D, H)
    settings: SliceSettings

    def steps(self, epoch: int) -> int:
        """An epoch is one pass over the larger side's slices, or `per_scan` of each of its scans."""
        if not self.settings.per_scan:
            return super().steps(epoch)
        scans = max(len(_slices(side).volumes) for side in (self.source, self.target))
        return -(-self.settings.per_scan * scans // (self.run.schedule.batch * self.run.world))

    def _networks(self, sites: int) -> dict[str, nn.Module]:
        width, blocks = self.settings.width, self.settings.blocks
        return {
            "generator": SliceGenerator(width, blocks),
            "reverse": SliceGenerator(width, blocks, sites),
            "discriminator_target": SliceDiscriminator(width),
            "discriminator_source": SliceDiscriminator(width),
        }

    def _images(self, volumes: F32) -> Images:
        slices = Slices(volumes)
        if not len(slices):
            raise UsageError(
                "no slice of one side holds brain.", "Look at its scans: they should be skull-stripped heads."
            )
        return slices

    def _scans(self, images: Images, picked: Sequence[int]) -> list[int]:
        return [int(_slices(images).scan[i]) for i in picked]

    def _asked(self, y: F32, scans: list[int]) -> F32:
        # A slice's own mean depends on its height: it is its volume that is brought to the common level.
        gains = [self.level / max(self.levels[scan], 1e-3) for scan in scans]
        asked: F32 = np.clip(y * np.array(gains, np.float32)[:, None, None], 0, 1)
        return asked

    def _varied(self, images: Images, index: int, rng: np.random.Generator, strength: Augmentation) -> F32:
        """Half of the slices mirrored left to right; heights and heads vary enough by themselves."""
        image: F32 = images[index]
        return np.ascontiguousarray(image[::-1]) if rng.random() < 0.5 else image

    def _seen(self, image: F32, rng: np.random.Generator, strength: Augmentation) -> F32:
        return scanner(image[:, :, None], rng, strength)[:, :, 0]


def _slices(images: Images) -> Slices:
    assert isinstance(images, Slices)
    return images
