"""One step of unpaired harmonization: Komandur 2023's losses over two generators and two discriminators.

The paper runs each generator three times a step (translate, cycle, identity). Here the translation and
the identity of one generator, and the restoration where asked for, share one batched pass: instance norm
treats every volume by itself, so that the numbers are the same and the device is used better.

With several source sites the way back may be told which one it leads to (`hz_train.condition`), as
Bashyam 2020 do it; discriminators and the forward generator are not told.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hz_runtime.model_space.levels import at_level
from hz_train.apply import applied
from hz_train.augment import Augmentation, mixture, pose, scanner
from hz_train.fit import Run, adam
from hz_train.levels import LEVELS
from hz_train.losses import Weights, discriminator_loss, l1, real_loss, total
from hz_train.volume_cyclegan import Discriminator, Generator

F32 = NDArray[np.float32]


class Images(Protocol):
    """What one side of a task is trained on, one at a time: an array of volumes, or slices of them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class Settings:
    """What is trained besides the schedule.

    augmentation : simulated scanners in front of the source scans; None trains on them as they are, as
        in the paper. The cycle then leads back to the scan as it was, not to the simulated one: asking
        for the simulated scanner back would teach the generator to hide it in its output.
    coarse, warmup : epochs of restoration alone before the adversarial ones, first on volumes of half the
        size (a sixteenth of the cost a step at four times the batch), then on whole ones; 0 in the paper.
        The schedule's epochs are counted from where these end.
    warmup_lr : learning rate at the start of them; it falls in a straight line to the schedule's.
    averaging : share that the running average of the forward generator's weights keeps each step; the
        average is what is saved and scored (Yazici 2019). 0, as in the paper, saves the last weights.
    width : channels of the first conv.
    anchor : the level (`levels.LEVELS`) at which restoration is asked for: "mean" of the brain, or that of
        its "white" matter, at which harmonized scans then come out.
    """

    weights: Weights = Weights()
    augmentation: Augmentation | None = None
    coarse: int = 0
    warmup: int = 0
    warmup_lr: float = 1e-4
    averaging: float = 0.0
    width: int = 32
    anchor: str = "mean"

    @property
    def before(self) -> int:
        """Epochs before the adversarial ones."""
        return self.coarse + self.warmup


class CycleGANTask:
    """Source-to-target and target-to-source generators, one discriminator for each side.

    source, target : (n, D, H, W) float32 training volumes in model space.
    held_source, held_target : the same, of held-out subjects; for pictures and the log only.
    condition : (n, sites) one-hot site of each source volume, which the reverse generator is then told;
        None pools the sources.
    """

    axes = 4  # of a batch as numpy holds it: (N, D, H, W)

    def __init__(
        self,
        source: F32,
        target: F32,
        held_source: F32,
        held_target: F32,
        settings: Settings,
        run: Run,
        condition: F32 | None = None,
    ) -> None:
        self.source, self.target = self._images(source), self._images(target)
        self.held_source, self.held_target = held_source, held_target
        self.shown = (held_source if len(held_source) else source)[:4]
        self.condition = condition
        self.settings = settings
        self.run = run
        schedule = run.schedule
        torch.manual_seed(schedule.seed)
        self.networks = self._networks(0 if condition is None else condition.shape[1])
        for network in self.networks.values():
            run.lay_out(network, self.axes)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generators": adam([self.networks["generator"], self.networks["reverse"]], schedule),
            "discriminators": adam(
                [self.networks["discriminator_target"], self.networks["discriminator_source"]], schedule
            ),
        }
        self.call = {name: run.compiled(network) for name, network in self.networks.items()}
        if settings.averaging:
            # Among the networks, so that it is saved and resumed with them; no optimizer knows it.
            self.networks["average"] = copy.deepcopy(self.networks["generator"]).requires_grad_(False)
        self.measure = LEVELS[settings.anchor]
        self.levels = [self.measure(volume) for volume in target]
        self.level = float(np.mean(self.levels))
        # Halved before the simulated scanners, not after: they then cost an eighth as well.
        self.half_target = self._images(halved(target)) if settings.coarse else self.target

    def _networks(self, sites: int) -> dict[str, nn.Module]:
        """Both generators and discriminators; sites : how many the reverse generator tells apart."""
        width = self.settings.width
        return {
            "generator": Generator(width),
            "reverse": Generator(width, sites),
            "discriminator_target": Discriminator(width),
            "discriminator_source": Discriminator(width),
        }

    def _images(self, volumes: F32) -> Images:
        """What a side is trained on, from its (n, D, H, W) volumes."""
        return volumes

    def _scans(self, images: Images, picked: Sequence[int]) -> list[int]:
        """The volumes that these images are of."""
        return list(picked)

    @property
    def harmonizer(self) -> nn.Module:
        """The forward generator as it is saved and scored."""
        return self.networks["average" if self.settings.averaging else "generator"]

    def rate(self, epoch: int) -> float:
        """Learning rate: the warm-up's straight line, then the schedule."""
        before, schedule = self.settings.before, self.run.schedule
        if epoch >= before:
            return schedule.rate(epoch - before)
        first = self.settings.warmup_lr
        return first + (schedule.lr - first) * epoch / before

    def _batch(self, epoch: int) -> int:
        """Volumes a step and process; half-size ones are an eighth of the work."""
        return self.run.schedule.batch * (4 if epoch < self.settings.coarse else 1)

    def steps(self, epoch: int) -> int:
        """An epoch is one pass over the larger side, four of half-size volumes."""
        larger = max(len(self.source), len(self.target))
        return -(-larger // (self.run.schedule.batch * self.run.world))

    def step(self, epoch: int, batch: Sequence[Tensor], run: Run) -> dict[str, Tensor]:
        """One update of the generators, then one of the discriminators; of one generator in the warm-up.

        batch : what `arrays` made, as tensors.
        """
        parts = self._step(epoch, run, batch)
        if self.settings.averaging:
            latest = self.networks["generator"].parameters()
            for mean, weight in zip(self.harmonizer.parameters(), latest, strict=True):
                mean.data.lerp_(weight.data, 1 - self.settings.averaging)
        return parts

    def _step(self, epoch: int, run: Run, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        if epoch < self.settings.before:
            y_seen, y_even = batch
            with run.autocast():
                loss = l1(self.call["generator"](y_seen), y_even)
            run.descend(loss, self.optimizers["generators"])
            return {"restore": loss}
        return cyclegan_step(self.call, self.optimizers, self.settings.weights, run, *batch)

    def arrays(self, epoch: int, index: int) -> tuple[F32, ...]:
        """What `cyclegan_step` takes, each image (N, D, H, W); in the warm-up only y_seen and y_even."""
        first = (index * self.run.world + self.run.rank) * self._batch(epoch)
        slots = range(first, first + self._batch(epoch))
        target = self.half_target if epoch < self.settings.coarse else self.target
        y, y_seen, scans = self._side(1, target, epoch, slots)
        y_even = self._asked(y, scans)
        if self.settings.anchor == "white":
            y = y_even  # the discriminator would else see by its brightness which scan is real
        if epoch < self.settings.before:
            return y_seen, y_even
        x_clean, x, scans = self._side(0, self.source, epoch, slots)
        origin = () if self.condition is None else (self.condition[scans],)
        return x, x_clean, y, y_seen, y_even, *origin

    def _side(self, side: int, images: Images, epoch: int, slots: range) -> tuple[F32, F32, list[int]]:
        """(as they are, as the generators meet them, of which volumes) of one side's images for a step."""
        seed, strength = self.run.schedule.seed, self.settings.augmentation
        wanted = self.steps(epoch) * self._batch(epoch) * self.run.world
        order = _order(len(images), wanted, (seed, 3 + side, epoch))
        picked = [int(order[slot]) for slot in slots]
        scans = self._scans(images, picked)
        if strength is None:
            clean = np.stack([images[i] for i in picked])
            return clean, clean, scans
        draws = [np.random.default_rng([seed, 5 + side, epoch, slot]) for slot in slots]
        varied = [self._varied(images, i, rng, strength) for i, rng in zip(picked, draws, strict=True)]
        seen = [self._seen(image, rng, strength) for image, rng in zip(varied, draws, strict=True)]
        return np.stack(varied), np.stack(seen), scans

    def _asked(self, y: F32, scans: list[int]) -> F32:
        """What restoration is asked for, of the target images y of these volumes."""
        return self.even(y)

    def _varied(self, images: Images, index: int, rng: np.random.Generator, strength: Augmentation) -> F32:
        """Another head: moved, and sometimes mixed with a second one."""
        volume = pose(images[index], rng, scale=strength.scale)
        if rng.random() < strength.mixing:
            other = images[rng.integers(len(images))]
            volume = mixture(volume, pose(other, rng, scale=strength.scale), rng)
        return volume

    def _seen(self, image: F32, rng: np.random.Generator, strength: Augmentation) -> F32:
        """The image through another scanner."""
        return scanner(image, rng, strength)

    def even(self, volumes: F32) -> F32:
        """(n, D, H, W) volumes at the target site's average level."""
        return at_level(volumes, self.level, self.measure)

    def harmonize(self, volumes: F32) -> F32:
        """(n, D, H, W) through the forward generator, in float32."""
        return applied(self.harmonizer, volumes, self.run)

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Restoration error on held-out target subjects seen through fixed simulated scanners.

        Mean |difference| inside the brain, all volumes scaled to one brain mean; on half-size volumes in
        the coarse epochs.
        """
        if self.settings.augmentation is None or len(self.held_target) == 0:
            return {}
        held = self.held_target[:8]
        clean = self.even(halved(held) if epoch < self.settings.coarse else held)
        seen = simulated(clean, self.settings.augmentation, seed=1)
        brain = clean > 0.02
        made = self.even(self.harmonize(seen))
        return {
            "held_out_before": float(np.abs(self.even(seen) - clean)[brain].mean()),
            "held_out_after": float(np.abs(made - clean)[brain].mean()),
        }

    def picture(self, path: Path) -> None:
        """Middle axial slices of fixed held-out source scans: before above, after below."""
        from hz_runtime.io.atomic import atomic_write_bytes
        from hz_runtime.report.png import encode_png

        volumes = self.shown
        if self.settings.augmentation is not None:
            volumes = np.concatenate([volumes, simulated(volumes, self.settings.augmentation, seed=2)])
        middle = volumes.shape[-1] // 2
        rows = [
            np.concatenate([np.rot90(v[:, :, middle]) for v in side], 1)
            for side in (volumes, self.harmonize(volumes))
        ]
        grey = (np.clip(np.concatenate(rows), 0, 1) * 255).astype(np.uint8).repeat(3, 0).repeat(3, 1)
        atomic_write_bytes(path, encode_png(grey))


def halved(volumes: F32) -> F32:
    """(n, D, H, W), even sizes, to half the size by averaging cubes of eight voxels."""
    n, d, h, w = volumes.shape
    cubes = volumes.reshape(n, d // 2, 2, h // 2, 2, w // 2, 2)
    return np.asarray(cubes.mean((2, 4, 6), dtype=np.float32))


def simulated(volumes: F32, strength: Augmentation, seed: int) -> F32:
    """Each volume through one fixed random scanner."""
    return np.stack([scanner_view(volume, strength, seed, i) for i, volume in enumerate(volumes)])


def scanner_view(volume: F32, strength: Augmentation, seed: int, index: int) -> F32:
    """One volume, the index-th of a series, through the fixed random scanner that (seed, index) decides."""
    return scanner(volume, np.random.default_rng([seed, index]), strength)


def cyclegan_step(
    networks: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    weights: Weights,
    run: Run,
    x: Tensor,
    x_clean: Tensor,
    y: Tensor,
    y_seen: Tensor,
    y_even: Tensor,
    condition: Tensor | None = None,
) -> dict[str, Tensor]:
    """LSGAN, cycle and identity losses of Komandur 2023, both directions; returns the parts, unweighted.

    x, y_seen : source and target as the generators meet them.  x_clean, y : as they are; equal to the
    former in the paper's form.  y_even : what restoration is asked for. All (N, 1, D, H, W), or slices
    (N, 1, D, H), on the run's device.
    condition : (N, sites) one-hot site of each x, for a reverse generator that takes it: x is led back to its
    own site, and y to the site of the x it travels with.
    """
    of_target, of_source = networks["discriminator_target"], networks["discriminator_source"]
    for discriminator in (of_target, of_source):
        discriminator.requires_grad_(False)
    n = len(x)
    restoring = weights.restore > 0
    once = () if condition is None else (condition,)
    twice = () if condition is None else (torch.cat([condition, condition]),)
    with run.autocast():
        forward = networks["generator"](torch.cat([x, y, y_seen] if restoring else [x, y]))
        backward = networks["reverse"](torch.cat([y, x_clean]), *twice)
        fake_y, same_y = forward[:n], forward[n : 2 * n]
        fake_x, same_x = backward[:n], backward[n:]
        parts = {
            "adversarial_target": real_loss(of_target(fake_y)),
            "adversarial_source": real_loss(of_source(fake_x)),
            "cycle_source": l1(networks["reverse"](fake_y, *once), x_clean),
            "cycle_target": l1(networks["generator"](fake_x), y),
            "identity_target": l1(same_y, y),
            "identity_source": l1(same_x, x_clean),
        }
        if restoring:
            parts["restore"] = l1(forward[2 * n :], y_even)
        loss = total(parts, weights)
    run.descend(loss, optimizers["generators"])

    for discriminator in (of_target, of_source):
        discriminator.requires_grad_(True)
    with run.autocast():
        scores_target = of_target(torch.cat([y, fake_y.detach().to(y.dtype)]))
        scores_source = of_source(torch.cat([x_clean, fake_x.detach().to(x.dtype)]))
        judged = discriminator_loss(scores_target[:n], scores_target[n:]) + discriminator_loss(
            scores_source[:n], scores_source[n:]
        )
    run.descend(judged, optimizers["discriminators"])
    return {"generators": loss, "discriminators": judged, **parts}


@lru_cache(maxsize=4)
def _order(count: int, wanted: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """`wanted` indices below `count`: whole seeded permutations one after the other."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])[:wanted]
