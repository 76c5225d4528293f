"""One step of the slice predictor: squared error in standardised years, or cross-entropy of a diagnosis.

Every slice of a training scan is an example with its scan's age or label. Loss, learning rate and end of
training follow Bashyam 2020 (`hz_train.plateau`). Choice made here: the weights kept are those of the epoch
with the lowest validation loss, since the rule stops only after that loss has risen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hz_runtime.inference.slice_wise import axial_slices
from hz_train.apply import applied
from hz_train.augment import Augmentation, scanner
from hz_train.fit import Run, adam
from hz_train.plateau import Plateau
from hz_train.slice_resnet import SliceResNet

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class SlicePredictorSettings:
    """What is trained besides the schedule, whose milestones do not count here.

    augmentation : simulated scanners in front of the training slices; None as in the paper.
    per_scan : slices drawn of a scan an epoch, on average; 0 for all.
    """

    plateau: Plateau = Plateau()
    augmentation: Augmentation | None = None
    width: int = 32
    per_scan: int = 0


class SlicePredictorTask:
    """volumes : (n, D, H, N) float32, the N slices of each (harmonized) scan in model space that are read.

    wanted : (n,) float32: years, or with `classify` 1 for the positive label and 0 for the other.
    validation, validation_wanted : the same of other subjects, who decide when to stop; may be empty.
    """

    def __init__(
        self,
        volumes: F32,
        wanted: F32,
        validation: F32,
        validation_wanted: F32,
        settings: SlicePredictorSettings,
        run: Run,
        classify: bool = False,
    ) -> None:
        self.volumes, self.wanted = volumes, wanted
        self.validation, self.validation_wanted = validation, validation_wanted
        self.settings, self.run, self.classify = settings, run, classify
        torch.manual_seed(run.schedule.seed)
        network = SliceResNet(settings.width, classify, shape=volumes.shape[1:3])
        if not classify:
            network.set_ages(torch.from_numpy(wanted))
        self.sd = float(network.sd)
        run.lay_out(network, 3)
        self.networks: dict[str, nn.Module] = {"predictor": network}
        if len(validation):
            # Among the networks, so that it is saved and resumed with them; no optimizer knows it.
            self.networks["best"] = copy.deepcopy(network).requires_grad_(False)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"predictor": adam([network], run.schedule)}
        self.call = run.compiled(network)
        self.losses: list[float] = []
        self.validation_losses: list[float] = []
        self.ended = ""

    @property
    def predictor(self) -> nn.Module:
        """The network that is saved and scored."""
        return self.networks["best" if len(self.validation) else "predictor"]

    def review(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Take note of the epochs done; whether training ends here."""
        self.losses = [row["loss"] for row in history]
        self.validation_losses = [row["validation_loss"] for row in history if "validation_loss" in row]
        self.ended = self.settings.plateau.ended(self.losses, self.validation_losses)
        return bool(self.ended)

    def rate(self, epoch: int) -> float:
        """Learning rate: the schedule's first, cut at every plateau so far."""
        return self.run.schedule.lr * self.settings.plateau.factor_of(self.losses)

    def steps(self, epoch: int) -> int:
        """Full batches only: batch norm has no statistics of a single slice."""
        slices = len(self.volumes) * (self.settings.per_scan or int(self.volumes.shape[3]))
        return max(1, slices // (self.run.schedule.batch * self.run.world))

    def step(self, epoch: int, batch: Sequence[Tensor], run: Run) -> dict[str, Tensor]:
        """One update of the network. batch : slices (N, 1, D, H) and what is wanted of each, (N,)."""
        slices, targets = batch
        wanted = targets.reshape(-1, 1)
        with run.autocast():
            answers = self.call(slices)
        if self.classify:
            loss = functional.binary_cross_entropy_with_logits(answers, wanted)
            said = {"accuracy": ((answers > 0) == (wanted > 0.5)).float().mean()}
        else:
            loss = ((answers - wanted) / self.sd).square().mean()
            said = {"mae_years": (answers - wanted).abs().mean()}
        run.descend(loss, self.optimizers["predictor"])
        return {"loss": loss, **said}

    def arrays(self, epoch: int, index: int) -> tuple[F32, F32]:
        """The slices (N, D, H) of a step, varied where asked for, and what is wanted of each, (N,)."""
        schedule, run = self.run.schedule, self.run
        n, _, _, depth = self.volumes.shape
        order = np.random.default_rng([schedule.seed, 3, epoch]).permutation(n * depth)
        first = (index * run.world + run.rank) * schedule.batch
        slots = [s % len(order) for s in range(first, first + schedule.batch)]
        picked = []
        for slot in slots:
            scan, height = divmod(int(order[slot]), depth)
            image = self.volumes[scan, :, :, height]
            if self.settings.augmentation is not None and (image > 0.05).any():
                rng = np.random.default_rng([schedule.seed, 5, epoch, slot])
                image = scanner(image[:, :, None], rng, self.settings.augmentation)[:, :, 0]
            picked.append(image)
        return np.stack(picked), self.wanted[order[slots] // depth]

    def evaluate(self, epoch: int) -> dict[str, float]:
        """The validation loss, mean over slices; where it is the lowest so far, the weights are kept."""
        if not len(self.validation):
            return {}
        network = self.networks["predictor"]
        loss = float(np.mean([self._loss(v, w) for v, w in self._pairs(network)]))
        if loss < min(self.validation_losses, default=np.inf):
            self.networks["best"].load_state_dict(network.state_dict())
        return {"validation_loss": loss}

    @torch.no_grad()
    def _pairs(self, network: nn.Module) -> list[tuple[F64, float]]:
        """(answers of its slices, what is wanted) of each validation scan."""
        network.eval()
        answers = [network(self.run.put(axial_slices(volume)[:, 0])) for volume in self.validation]
        network.train()
        numbers = [answer.reshape(-1).double().cpu().numpy() for answer in answers]
        return list(zip(numbers, self.validation_wanted.tolist(), strict=True))

    def _loss(self, answers: F64, wanted: float) -> float:
        if self.classify:
            right = answers if wanted > 0.5 else 1 - answers
            return float(-np.log(np.maximum(right, 1e-7)).mean())
        return float((((answers - wanted) / self.sd) ** 2).mean())

    def predict(self, volumes: F32) -> F64:
        """(n, D, H, N) to (n,): the median over the slices of years, or of probabilities."""
        return applied(self.predictor, volumes, self.run).astype(np.float64)

    def picture(self, path: Path) -> None:
        """Nothing to draw: the answers are numbers, and the log has them."""
