"""What reads an age or a diagnosis from volumes: the networks of both systems, and ridge on block means."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hz_runtime.inference.slice_wise import middle
from hz_train.age_cnn import AgeCNN
from hz_train.age_task import AgeSettings, AgeTask
from hz_train.cohort import Cohort
from hz_train.datasets import ModelInputs
from hz_train.fit import Run, fit
from hz_train.precision import settled
from hz_train.slice_predictor_task import SlicePredictorSettings, SlicePredictorTask
from hz_train.studies.presets import StudySettings, whom

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

RIDGE = "ridge on block means"
VALIDATION = 0.2  # of the training subjects, where a network's training needs some to know when to end
PENALTIES = np.logspace(-2, 6, 33)


@dataclass(frozen=True)
class Fitted:
    """A trained predictor. predict : (n, ...) float32, as it was trained on, to (n,) years or probabilities.

    seen : subjects and file hashes it was trained on.
    """

    name: str
    predict: Callable[[F32], F64]
    seen: frozenset[str]


class Predictors:
    """Trains predictors for one seed of a study; the same training volumes and targets train only once.

    task : "age" (targets in years) or "diagnosis" (targets 0 and 1, answers probabilities).
    """

    def __init__(self, settings: StudySettings, seed: int, task: str = "age") -> None:
        self.settings, self.seed, self.task = settings, seed, task
        self._known: dict[str, Fitted] = {}

    def fit(self, volumes: F32, training: ModelInputs, targets: F32, features: bool = False) -> Fitted:
        """Train on `volumes` made from the scans of `training`, in that order; targets (n,).

        features : volumes are block means, read by ridge.
        """
        # How long it trains is in the key, too: a folder's longer training would be taken for a shorter one.
        how = repr((self.settings.preset.predictor, self.settings.preset.settings)).encode()
        what = np.ascontiguousarray(volumes).tobytes() + targets.tobytes() + how
        key = hashlib.sha256(what).hexdigest()[:16]
        if key not in self._known:
            seen = whom(training)
            if features:
                self._known[key] = Fitted(RIDGE, ridge(_flat(volumes), targets.astype(np.float64)), seen)
            elif self.settings.system == "slice":
                self._known[key] = self._slices(volumes, training, targets, key)
            else:
                self._known[key] = self._volumes(volumes, training, targets, key)
        return self._known[key]

    def _volumes(self, volumes: F32, training: ModelInputs, targets: F32, key: str) -> Fitted:
        preset = self.settings.preset
        batch = min(preset.predictor.batch, len(volumes))
        schedule = replace(preset.predictor, seed=self.seed, batch=batch)
        schedule = settled(schedule, self.settings.device, self._folder(key))
        run = Run.start(schedule, self.settings.device)
        kind = AgeTask if self.task == "age" else DiagnosisTask
        assert isinstance(preset.settings, AgeSettings)
        task = kind(volumes, targets, volumes[:0], targets[:0], preset.settings, run)
        out = self._folder(key)
        fit(task, run, out, {"kind": kind.__name__, "volumes": key, "settings": asdict(preset.settings)})
        task.settle()
        task.combine([scan.subject for scan in training.scans])
        name = {"paper": "3D CNN", "ensemble": "3D CNN and ridge"}[preset.settings.form]
        return Fitted(name, task.predict, whom(training))

    def _slices(self, volumes: F32, training: ModelInputs, targets: F32, key: str) -> Fitted:
        """The slice ResNet; a fifth of the training subjects decide when its training ends."""
        preset = self.settings.preset
        recipe = self.settings.recipe
        read = middle(recipe.grid_shape[2], recipe.middle_slices or recipe.grid_shape[2])
        stacks = volumes[:, :, :, read]
        aside = self._aside(training, targets)
        run = Run.start(replace(preset.predictor, seed=self.seed), self.settings.device)
        assert isinstance(preset.settings, SlicePredictorSettings)
        task = SlicePredictorTask(
            stacks[~aside],
            targets[~aside],
            stacks[aside],
            targets[aside],
            preset.settings,
            run,
            classify=self.task == "diagnosis",
        )
        identity = {"kind": "slice_resnet", "volumes": key, "settings": asdict(preset.settings)}
        fit(task, run, self._folder(key), identity)
        return Fitted("slice ResNet", lambda made: task.predict(made[:, :, :, read]), whom(training))

    def _aside(self, training: ModelInputs, targets: F32) -> NDArray[np.bool_]:
        """(n,) which scans decide when training ends: a share of the subjects, or of each label's subjects.

        Nobody where there are too few to spare.
        """
        label = targets if self.task == "diagnosis" else np.zeros(len(targets))
        aside = np.zeros(len(targets), bool)
        for value in np.unique(label):
            part = Cohort(tuple(s for s, v in zip(training.scans, label, strict=True) if v == value))
            inner = set(part.split(VALIDATION, self.seed)[1].subjects)
            aside |= [v == value and s.subject in inner for s, v in zip(training.scans, label, strict=True)]
        enough = len(set(targets[~aside])) > 1 and len(set(label[aside])) == len(set(label))
        return aside if enough else np.zeros_like(aside)

    def _folder(self, key: str) -> Path:
        return self.settings.work(self.seed, f"{self.task}-{key}")


class DiagnosisTask(AgeTask):
    """The age network read as the logit of a label: binary cross-entropy, targets 0 and 1.

    Its output is not standardised; `predict` gives probabilities.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        network = self.networks["age"]
        assert isinstance(network, AgeCNN)
        network.mean.zero_()
        network.sd.fill_(1.0)

    def step(self, epoch: int, batch: Sequence[Tensor], run: Run) -> dict[str, Tensor]:
        """One update of the network. batch : volumes (N, 1, D, H, W) and labels (N,), 0 or 1."""
        volumes, labels = batch
        with run.autocast():
            logits = self.call(volumes)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), labels.reshape(-1, 1))
        run.descend(loss, self.optimizers["age"])
        return {"loss": loss}

    def predict(self, volumes: F32) -> F64:
        """(n, D, H, W) to (n,) probabilities of label 1."""
        return 1.0 / (1.0 + np.exp(-np.clip(super().predict(volumes), -500, 500)))


def ridge(features: F64, targets: F64) -> Callable[[F32], F64]:
    """Ridge regression with the penalty of least leave-one-out error; a function of (n, ...) features.

    features : (n, p), standardised here; constant ones drop out.  targets : (n,).
    Leave-one-out residuals in closed form: r_i / (1 - h_ii), h the hat matrix (Allen 1974).
    """
    centre, scale = features.mean(0), features.std(0)
    used = scale > 1e-6
    centre, scale = centre[used], scale[used]
    x = (features[:, used] - centre) / scale
    middle = float(targets.mean())
    y = targets - middle
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    errors = []
    for penalty in PENALTIES:
        shrink = s**2 / (s**2 + penalty)
        hat = np.einsum("ik,k,ik->i", u, shrink, u) + 1 / len(y)  # the mean is fitted, too
        left = (y - u @ (shrink * (u.T @ y))) / np.maximum(1 - hat, 1e-9)
        errors.append(float(np.square(left).mean()))
    best = PENALTIES[int(np.argmin(errors))]
    weights = vt.T @ (s / (s**2 + best) * (u.T @ y))

    def predict(volumes: F32) -> F64:
        return np.asarray((_flat(volumes)[:, used] - centre) / scale @ weights + middle)

    return predict


def _flat(volumes: F32) -> F64:
    return volumes.reshape(len(volumes), -1).astype(np.float64)
