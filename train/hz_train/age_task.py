"""One step of the age network: mean squared error in standardised years."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hz_runtime.model_space.levels import white_level
from hz_train.age_cnn import AgeCNN
from hz_train.age_ensemble import AgeEnsemble
from hz_train.augment import Augmentation, pose, scanner
from hz_train.fit import Run, adam

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class AgeSettings:
    """What is trained besides the schedule; augmentation None trains on the volumes as they are.

    form : "paper", the age CNN of Komandur 2023, or "ensemble" (`age_ensemble`).
    averaging : share that the running average of the weights keeps each step; the average is what is saved
        and scored. 0 saves the last weights: with batch norm and few people, single epochs differ by a year.
    """

    augmentation: Augmentation | None = None
    width: int = 32
    form: str = "paper"
    averaging: float = 0.0


class AgeTask:
    """volumes : (n, D, H, W) float32 (harmonized) scans in model space.  ages : (n,) years, all known."""

    def __init__(
        self, volumes: F32, ages: F32, held: F32, held_ages: F32, settings: AgeSettings, run: Run
    ) -> None:
        self.volumes, self.ages = volumes, ages
        self.held, self.held_ages = held, held_ages
        self.settings, self.run = settings, run
        torch.manual_seed(run.schedule.seed)
        network = self._network()
        network.set_ages(torch.from_numpy(ages))
        self.networks: dict[str, nn.Module] = {"age": run.lay_out(network, 4)}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"age": adam([network], run.schedule)}
        self.call = run.compiled(network)
        if settings.averaging:
            # Among the networks, so that it is saved and resumed with them; no optimizer knows it.
            self.networks["average"] = copy.deepcopy(network).requires_grad_(False)

    def _network(self) -> AgeCNN | AgeEnsemble:
        """The network, new."""
        grid = self.volumes.shape[1:]
        if self.settings.form == "paper":
            return AgeCNN(self.settings.width, grid)
        level = float(np.mean([white_level(volume) for volume in self.volumes]))
        return AgeEnsemble(self.settings.width, grid, level=level)

    @property
    def predictor(self) -> AgeCNN | AgeEnsemble:
        """The network as it is saved and scored."""
        network = self.networks["average" if self.settings.averaging else "age"]
        assert isinstance(network, AgeCNN | AgeEnsemble)
        return network

    def steps(self, epoch: int) -> int:
        """Full batches only: batch norm has no statistics of a single volume."""
        return max(1, len(self.volumes) // (self.run.schedule.batch * self.run.world))

    def rate(self, epoch: int) -> float:
        """Learning rate: the schedule's."""
        return self.run.schedule.rate(epoch)

    def step(self, epoch: int, batch: Sequence[Tensor], run: Run) -> dict[str, Tensor]:
        """One update of the network. batch : volumes (N, 1, D, H, W) and years (N,)."""
        volumes, targets = batch
        network = self.networks["age"]
        with run.autocast():
            years = self.call(volumes)
        wanted = targets.reshape(-1, 1)
        loss = ((years - wanted) / network.sd).square().mean()
        run.descend(loss, self.optimizers["age"])
        if self.settings.averaging:
            # Buffers, those of batch norm, too: whoever looks at the average meanwhile finds all of one time.
            latest = [*network.parameters(), *network.buffers()]
            average = [*self.predictor.parameters(), *self.predictor.buffers()]
            for mean, value in zip(average, latest, strict=True):
                if mean.is_floating_point():
                    mean.data.lerp_(value.data, 1 - self.settings.averaging)
        return {"loss": loss, "mae_years": (years - wanted).abs().mean()}

    def arrays(self, epoch: int, index: int) -> tuple[F32, F32]:
        """The volumes (N, D, H, W) of a step, varied where asked for, and their ages (N,)."""
        schedule, run = self.run.schedule, self.run
        order = np.random.default_rng([schedule.seed, 3, epoch]).permutation(len(self.volumes))
        first = (index * run.world + run.rank) * schedule.batch
        slots = [int(s) % len(order) for s in range(first, first + schedule.batch)]
        picked = []
        for slot in slots:
            volume = self.volumes[order[slot]]
            if self.settings.augmentation is not None:
                rng = np.random.default_rng([schedule.seed, 5, epoch, slot])
                volume = scanner(pose(volume, rng), rng, self.settings.augmentation)
            picked.append(volume)
        return np.stack(picked), self.ages[order[slots]]

    @torch.no_grad()
    def settle(self) -> None:
        """Take batch norm's statistics afresh, over all training volumes.

        Its running averages trail weights that still move, and small cohorts end before they catch up.
        """
        network = self.predictor.train()
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches that follow
        # Mixed like training batches: in a cohort sorted by age or site, neighbours are alike, and their
        # variance is not the cohort's.
        size = min(self.run.schedule.batch, len(self.volumes))
        order = np.random.default_rng([self.run.schedule.seed, 7]).permutation(len(self.volumes))
        for first in range(0, len(order) - size + 1, size):
            network(self.run.put(self.volumes[order[first : first + size]]))
        for norm in norms:
            norm.momentum = 0.1

    def combine(self, people: Sequence[str]) -> None:
        """Fit what an ensemble has beside its CNN. people : (n,) who was scanned, in the volumes' order."""
        if isinstance(self.predictor, AgeEnsemble):
            self.predictor.combine(self.volumes, self.ages, people)

    @torch.no_grad()
    def predict(self, volumes: F32) -> NDArray[np.float64]:
        """(n, D, H, W) to (n,) years, in float32."""
        return self._over(volumes, self.predictor)[:, 0]

    @torch.no_grad()
    def features(self, volumes: F32) -> NDArray[np.float64]:
        """(n, D, H, W) to the (n, F) features that the network's last layer reads."""
        return self._over(volumes, self.predictor.last_features)

    def _over(self, volumes: F32, answer: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
        """(n, D, H, W) to (n, K): the answers of the predictor, a batch at a time.

        One small volume alone torch convolves without oneDNN, several times slower
        (findings/torch_conv3d_one_volume.sh).
        """
        network, size = self.predictor.eval(), self.run.schedule.batch
        starts = range(0, len(volumes), size)
        rows = [answer(self.run.put(volumes[k : k + size])).float().cpu().numpy() for k in starts]
        network.train()
        return np.concatenate(rows).astype(np.float64)

    def evaluate(self, epoch: int) -> dict[str, float]:
        """MAE of the held-out subjects, for the log; it selects nothing."""
        if len(self.held) == 0:
            return {}
        return {"held_out_mae": float(np.abs(self.predict(self.held) - self.held_ages).mean())}

    def picture(self, path: Path) -> None:
        """Nothing to draw: an age is a number, and the log has it."""
