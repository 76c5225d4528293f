"""Training the age network from a cohort: folds for an honest score, then one network on everyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.model_space.outliers import reference_of
from hz_runtime.model_space.recipe import Recipe
from hz_train.age_task import AgeSettings, AgeTask
from hz_train.augment import Augmentation, scaled_as
from hz_train.checkpoint import load_checkpoint, save_checkpoint, with_prefix
from hz_train.cohort import Cohort, pseudonym, pseudonyms, with_known_age
from hz_train.datasets import ModelInputs, describe, load, statistics, with_anatomy
from hz_train.feature_reference import feature_reference, stored_reference
from hz_train.fit import Run, Schedule, fit
from hz_train.harmonizers import harmonized
from hz_train.precision import settled
from hz_train.scores import age_scores

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class AgePreset:
    """held_out : share of subjects for one 70:30 split (the paper), used where folds is 0.
    folds : subject-level cross-validation instead, for cohorts too small to spare 30 %.
    controls_only : leave patients out, as the paper does.
    """

    schedule: Schedule
    settings: AgeSettings = AgeSettings()
    held_out: float = 0.3
    folds: int = 0
    controls_only: bool = True


KINDS = {"paper": "age_cnn", "ensemble": "age_ensemble"}  # of checkpoints, by form
PRESETS = {
    # Komandur 2023 gives no schedule for the age network. Batch and epochs are those of its CycleGAN; with
    # that one's beta of 0.5 the network answered the mean age for its first ten epochs of simulated scans.
    "paper": AgePreset(
        Schedule(lr=3e-4, milestones=(50, 75), betas=(0.9, 0.999), weight_decay=1e-4, picture_every=0)
    ),
    "quick": AgePreset(Schedule(epochs=2, batch=4, milestones=(), precision="auto", picture_every=0)),
    # 80 scans, most of them of patients: nobody is left out, and all are held out once.
    "reference": AgePreset(
        Schedule(
            epochs=16, batch=4, lr=3e-4, milestones=(12,), betas=(0.9, 0.999), weight_decay=1e-4,
            precision="bf16", seed=2023, picture_every=0,
        ),
        AgeSettings(Augmentation.mild()),
        folds=4,
        controls_only=False,
    ),
    # The reference bundle's: nobody is spared, and all are held out once. 20 epochs underfit by half a year.
    "ensemble": AgePreset(
        Schedule(
            epochs=45, batch=8, lr=4e-3, milestones=(27, 38), gamma=0.3, betas=(0.9, 0.999),
            weight_decay=1e-4, precision="auto", seed=2023, picture_every=0,
        ),
        AgeSettings(replace(Augmentation.mild(), unchanged=0.85), width=16, form="ensemble", averaging=0.99),
        folds=5,
        controls_only=False,
    ),
}  # fmt: skip


def train_age(
    cohort: Cohort,
    sites: Sequence[str],
    out: Path,
    preset: AgePreset,
    harmonizer: Path | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
    licence: str = "",
) -> Path:
    """Train the age network; returns the checkpoint, `out`/age.safetensors.

    sites : whose scans are used; none for all.  harmonizer : checkpoint of hz-train cyclegan; scans of its
    source sites pass through it first, those of its target site too, as hz-run will send every scan
    through it.
    Raises UsageError where nobody with an age is left.
    """
    used = with_known_age(cohort, sites, preset.controls_only)
    preset = replace(preset, schedule=settled(preset.schedule, device, out))
    recipe = recipe or Recipe()
    augmentation = scaled_as(recipe, preset.settings.augmentation)
    preset = replace(preset, settings=replace(preset.settings, augmentation=augmentation))
    with Run.start(preset.schedule, device) as run:
        inputs = _inputs(used, recipe, harmonizer, run)
        identity = _identity(preset, recipe, harmonizer, inputs)
        predicted, distances, split = _held_out_predictions(used, inputs, preset, run, out, identity)
        final = used if preset.folds else used.split(preset.held_out, preset.schedule.seed)[0]
        training = inputs.of(final)
        task = _fit_one(training, inputs.of(Cohort(())), preset, run, out / "final", identity)
        path = out / "age.safetensors"
        if run.rank == 0:
            meta = {
                **_described(preset, recipe, used, training),
                **_results(predicted, split),
                "age_features": stored_reference(feature_reference(task.features(training.grids)), distances),
                "reference": {} if harmonizer else reference_of(training.grids, training.features),
                "harmonizer": identity["harmonizer"],
                "licence": licence,
            }
            save_checkpoint(path, with_prefix("age", task.predictor.state_dict()), meta)
    return path


def _inputs(used: Cohort, recipe: Recipe, harmonizer: Path | None, run: Run) -> ModelInputs:
    """The scans in model space, behind the harmonizer where there is one."""
    inputs = load(used, recipe)
    seen = inputs.grids if harmonizer is None else harmonized(inputs.grids, harmonizer, recipe, run)
    return with_anatomy(inputs, seen, recipe)


def _identity(
    preset: AgePreset, recipe: Recipe, harmonizer: Path | None, inputs: ModelInputs
) -> dict[str, Any]:
    """Everything besides the schedule that decides the weights."""
    return {
        "kind": KINDS[preset.settings.form],
        "recipe": recipe.to_dict(),
        "preset": {"settings": asdict(preset.settings), "held_out": preset.held_out, "folds": preset.folds},
        "harmonizer": load_checkpoint(harmonizer)[1]["sha256"] if harmonizer else None,
        "scans": sorted(inputs.sha256),
    }


def _described(preset: AgePreset, recipe: Recipe, used: Cohort, training: ModelInputs) -> dict[str, Any]:
    """What the checkpoint says of the network and of whom it has learned from."""
    return {
        "kind": KINDS[preset.settings.form],
        "network": {"width": preset.settings.width, "grid": list(recipe.grid_shape)},
        "sources": sorted({s.site for s in used.scans}),
        "target": None,
        "recipe": recipe.to_dict(),
        "statistics": statistics(training.features),
        "cohort": {"training": describe(training)},
        "seed": preset.schedule.seed,
        "schedule": asdict(preset.schedule),
        "settings": asdict(preset.settings),
    }


Predicted = tuple[F64, F64, list[str], list[dict[str, list[str]]]]


def _held_out_predictions(
    used: Cohort, inputs: ModelInputs, preset: AgePreset, run: Run, out: Path, identity: dict[str, Any]
) -> tuple[Predicted, list[float], str]:
    """((ages, raw predictions, subjects, folds), distances, how) over scans whose subject the predicting
    network never saw.

    distances : of its features of them from those of its training people.  folds : under pseudonyms, whom
    each network predicted and whom it was trained on, so that whoever fits an age bias can check that.
    """
    seed = preset.schedule.seed
    if preset.folds:
        pairs = used.folds(preset.folds, seed)
        how = f"{preset.folds}-fold cross-validation by subject, seed {seed}"
    else:
        pairs = [used.split(preset.held_out, seed)]
        how = f"{preset.held_out:.0%} of each site's subjects held out, seed {seed}"
        if not all(part.scans for part in pairs[0]):
            raise UsageError(
                f"{preset.held_out:.0%} of each site's subjects leaves nobody to train on, or to score.",
                "Choose another --held-out, or use --folds.",
            )
    ages: list[float] = []
    raw: list[float] = []
    subjects: list[str] = []
    folds: list[dict[str, list[str]]] = []
    distances: list[float] = []
    for k, (training, held) in enumerate(pairs):
        inside, outside = inputs.of(training), inputs.of(held)
        task = _fit_one(inside, outside, preset, run, out / f"fold-{k + 1}", identity)
        ages += [float(a) for a in outside.ages]
        raw += task.predict(outside.grids).tolist()
        subjects += [s.subject for s in outside.scans]
        if reference := feature_reference(task.features(inside.grids)):
            distances += reference.distances(task.features(outside.grids)).tolist()
        folds.append({"subjects": pseudonyms(held), "trained_on": pseudonyms(training)})
    return (np.array(ages), np.array(raw), subjects, folds), distances, how


def _results(predicted: Predicted, split: str) -> dict[str, Any]:
    """What the checkpoint says of the held-out scans: every prediction, and the scores."""
    ages, raw, subjects, folds = predicted
    return {
        "split": split,
        "held_out_predictions": {
            "age": ages.tolist(),
            "raw": raw.tolist(),
            "subjects": [pseudonym(subject) for subject in subjects],
            "how": split,
            "folds": folds,
        },
        "metrics": age_scores(ages, raw, subjects, split),
    }


def _fit_one(
    training: ModelInputs,
    held: ModelInputs,
    preset: AgePreset,
    run: Run,
    out: Path,
    identity: dict[str, Any],
) -> AgeTask:
    task = AgeTask(training.grids, training.ages, held.grids, held.ages, preset.settings, run)
    # With the ages: a table whose ages were corrected does not go on from the wrong ones.
    who = sorted(zip(training.sha256, training.ages.tolist(), strict=True))
    fit(task, run, out, {**identity, "training": who})
    task.settle()
    task.combine([scan.subject for scan in training.scans])
    return task
