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
from hz_train.augment import Augmentation
from hz_train.checkpoint import load_checkpoint, save_checkpoint, with_prefix
from hz_train.cohort import Cohort, pseudonym, pseudonyms
from hz_train.datasets import PreparedCohort, describe, load, statistics
from hz_train.fit import Run, Schedule, fit
from hz_train.harmonizers import harmonized
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


PRESETS = {
    # Komandur 2023 gives no schedule for the age network. Batch and epochs are those of its CycleGAN; with
    # that one's beta of 0.5 the network answered the mean age for its first ten epochs of simulated scans.
    "paper": AgePreset(
        Schedule(lr=3e-4, milestones=(50, 75), betas=(0.9, 0.999), weight_decay=1e-4, picture_every=0)
    ),
    "quick": AgePreset(Schedule(epochs=2, batch=4, milestones=(), picture_every=0)),
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
    used = (cohort.at(sites) if sites else cohort).with_age()
    if preset.controls_only:
        used = Cohort(tuple(s for s in used.scans if s.group in ("control", "n/a")))
    if len(used.subjects) < 4:
        raise UsageError(
            f"{len(used.subjects)} subjects with an age are left; training and scoring need at least 4.",
            "Check the age, site and group columns, or pass --all-groups.",
        )
    recipe = recipe or Recipe()
    prepared = load(used, recipe)
    run = Run.start(preset.schedule, device)
    volumes = prepared.grids if harmonizer is None else harmonized(prepared.grids, harmonizer, recipe, run)
    prepared = replace(prepared, grids=volumes)
    identity = {
        "kind": "age_cnn",
        "recipe": recipe.to_dict(),
        "preset": {"settings": asdict(preset.settings), "held_out": preset.held_out, "folds": preset.folds},
        "harmonizer": load_checkpoint(harmonizer)[1]["sha256"] if harmonizer else None,
        "scans": sorted(prepared.sha256),
    }
    predicted, split = _held_out_predictions(used, prepared, preset, run, out, identity)
    final = used if preset.folds else used.split(preset.held_out, preset.schedule.seed)[0]
    trained_on = prepared.of(final)
    task = _fit_one(trained_on, prepared.of(Cohort(())), preset, run, out / "final", identity)
    path = out / "age.safetensors"
    if run.rank == 0:
        ages, raw, groups, folds = predicted
        meta = {
            "kind": "age_cnn",
            "network": {"width": preset.settings.width, "grid": list(recipe.grid_shape)},
            "sources": sorted({s.site for s in used.scans}),
            "target": None,
            "recipe": recipe.to_dict(),
            "statistics": statistics(trained_on.features),
            "reference": {} if harmonizer else reference_of(trained_on.grids, trained_on.features),
            "cohort": {"training": describe(trained_on)},
            "harmonizer": identity["harmonizer"],
            "split": split,
            "seed": preset.schedule.seed,
            "schedule": asdict(preset.schedule),
            "settings": asdict(preset.settings),
            "held_out_predictions": {
                "age": ages.tolist(),
                "raw": raw.tolist(),
                "subjects": [pseudonym(subject) for subject in groups],
                "how": split,
                "folds": folds,
            },
            "metrics": age_scores(ages, raw, groups, split),
            "licence": licence,
        }
        save_checkpoint(path, with_prefix("age", task.networks["age"].state_dict()), meta)
    return path


Predicted = tuple[F64, F64, list[str], list[dict[str, list[str]]]]


def _held_out_predictions(
    used: Cohort, prepared: PreparedCohort, preset: AgePreset, run: Run, out: Path, identity: dict[str, Any]
) -> tuple[Predicted, str]:
    """((ages, raw predictions, subjects, folds), how) over scans whose subject the predicting network never
    saw. folds : under pseudonyms, whom each network predicted and whom it was trained on, so that whoever
    fits an age bias can check that."""
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
    for k, (training, held) in enumerate(pairs):
        inside, outside = prepared.of(training), prepared.of(held)
        task = _fit_one(inside, outside, preset, run, out / f"fold-{k + 1}", identity)
        ages += [float(a) for a in outside.ages]
        raw += task.predict(outside.grids).tolist()
        subjects += [s.subject for s in outside.scans]
        folds.append({"subjects": pseudonyms(held), "trained_on": pseudonyms(training)})
    return (np.array(ages), np.array(raw), subjects, folds), how


def _fit_one(
    training: PreparedCohort,
    held: PreparedCohort,
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
    return task
