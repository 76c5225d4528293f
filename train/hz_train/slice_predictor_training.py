"""Training the slice predictor of Bashyam 2020, age or diagnosis: split, fit, scores, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.inference.slice_wise import middle
from hz_runtime.model_space.outliers import reference_of
from hz_runtime.model_space.recipe import Recipe
from hz_train.checkpoint import load_checkpoint, save_checkpoint, with_prefix
from hz_train.cohort import LEAST_SUBJECTS, Cohort, Scan, pseudonym, pseudonyms, with_known_age
from hz_train.datasets import ModelInputs, describe, load, statistics
from hz_train.fit import Run, Schedule, fit
from hz_train.harmonizers import harmonized
from hz_train.scores import age_scores, diagnosis_scores
from hz_train.slice_predictor_task import SlicePredictorSettings, SlicePredictorTask
from hz_train.slice_recipes import slice_recipe
from hz_train.slice_resnet import SMALLEST

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class SlicePredictorPreset:
    """held_out : share of each site's subjects that the scores are taken on, where folds is 0.
    validation : share of the others' subjects who decide when training stops; where that is nobody, or
        nobody of one label, the training loss decides alone.
    folds : subject-level cross-validation for the scores, and a last network without held-out subjects.
    controls_only : leave patients out of an age network.
    """

    schedule: Schedule
    settings: SlicePredictorSettings = field(default_factory=SlicePredictorSettings)
    held_out: float = 0.15
    validation: float = 0.15
    folds: int = 0
    controls_only: bool = True


# The paper's rate; its rule ends training long before the epochs run out. Adam's betas are its author's.
_PAPER = Schedule(epochs=200, batch=32, lr=3e-4, milestones=(), betas=(0.9, 0.999), picture_every=0)
PRESETS = {
    "paper": SlicePredictorPreset(_PAPER),
    # 64^3 volumes have a seventh of the pixels and a third of the slices: hours on a CPU.
    "small": SlicePredictorPreset(replace(_PAPER, epochs=60), SlicePredictorSettings(width=16)),
    "quick": SlicePredictorPreset(
        replace(_PAPER, epochs=2, batch=8), SlicePredictorSettings(width=4, per_scan=4)
    ),
}


def adjusted(preset: SlicePredictorPreset, **changes: Any) -> SlicePredictorPreset:
    """A preset with some fields, its schedule's and its settings' included, replaced; None leaves one be."""
    given = {k: v for k, v in changes.items() if v is not None}

    def known(kind: Any) -> dict[str, Any]:
        return {f.name: given[f.name] for f in fields(kind) if f.name in given}

    schedule = replace(preset.schedule, **known(Schedule))
    settings = replace(preset.settings, **known(SlicePredictorSettings))
    return replace(preset, schedule=schedule, settings=settings, **known(SlicePredictorPreset))


@dataclass(frozen=True)
class Question:
    """What is predicted.

    wanted : a scan's years, or 1 for the positive label and 0 for the negative one.
    labels : (negative, positive) of a diagnosis; none for age.
    """

    task: str
    wanted: Callable[[Scan], float]
    labels: tuple[str, ...] = ()

    def strata(self, cohort: Cohort) -> list[Cohort]:
        """Parts that every split takes its share of: both labels' subjects, or everyone.

        A subject with scans of both labels, who fell ill in between, counts with the positive ones.
        """
        if not self.labels:
            return [cohort]
        ill = {s.subject for s in cohort.scans if s.group == self.labels[1]}
        return [cohort.of(set(cohort.subjects) - ill), cohort.of(ill)]

    def values(self, inputs: ModelInputs) -> F32:
        """(n,) float32 wanted."""
        return np.array([self.wanted(scan) for scan in inputs.scans], np.float32)


def train_slice_age(
    cohort: Cohort, sites: Sequence[str], out: Path, preset: SlicePredictorPreset, **given: Any
) -> Path:
    """Train a network from slices to years; returns the checkpoint, `out`/age.safetensors.

    sites : whose scans are used; none for all.  given : harmonizer, recipe, device, licence of `_train`.
    Raises UsageError where too few subjects with an age are left.
    """
    used = with_known_age(cohort, sites, preset.controls_only)
    return _train(used, out / "age.safetensors", preset, Question("age", lambda s: s.age or 0.0), **given)


def train_diagnosis(
    cohort: Cohort,
    sites: Sequence[str],
    out: Path,
    preset: SlicePredictorPreset,
    labels: Sequence[str] = (),
    **given: Any,
) -> Path:
    """Train a network from slices to a diagnosis's probability; returns `out`/diagnosis.safetensors.

    labels : (negative, positive) values of the group column; none where the scans have exactly two.
    given : harmonizer, recipe, device, licence of `_train`.
    Raises UsageError where there are not two labels, or too few subjects of one.
    """
    used = cohort.at(sites) if sites else cohort
    negative, positive = labels or found_labels(used)
    used = Cohort(tuple(s for s in used.scans if s.group in (negative, positive)))
    question = Question("diagnosis", lambda s: float(s.group == positive), (negative, positive))
    for label, part in zip(question.labels, question.strata(used), strict=True):
        if len(part.subjects) < LEAST_SUBJECTS:
            raise UsageError(
                f"{len(part.subjects)} subjects are of group {label!r}; training and scoring need at least "
                f"{LEAST_SUBJECTS} of each.",
                "Check the group and site columns, or name others with --labels NEGATIVE,POSITIVE.",
            )
    return _train(used, out / "diagnosis.safetensors", preset, question, **given)


def found_labels(cohort: Cohort) -> tuple[str, str]:
    """(negative, positive): the two values of the group column, "control" first where it is one of them.

    Raises UsageError where there are not exactly two, n/a not counted.
    """
    names = sorted({s.group for s in cohort.scans} - {"n/a"}, key=lambda name: (name != "control", name))
    if len(names) != 2:
        raise UsageError(
            f"the group column has {len(names)} values here: {', '.join(names) or 'none'}.",
            "Name two of them:  --labels NEGATIVE,POSITIVE",
        )
    return names[0], names[1]


def _train(
    used: Cohort,
    path: Path,
    preset: SlicePredictorPreset,
    question: Question,
    harmonizer: Path | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
    licence: str = "",
) -> Path:
    """harmonizer : checkpoint of hz-train canonical or cyclegan that every scan passes through first.
    recipe : its `middle_slices` are read; of `slice_recipe` by default.
    """
    recipe = _checked(recipe or slice_recipe())
    with Run.start(preset.schedule, device) as run:
        loaded = load(used, recipe)
        inputs = _read_slices(loaded, recipe, harmonizer, run)
        # Of whole volumes, as hz-run will compare them; behind a harmonizer its own cohort is what counts.
        whole = None if harmonizer else loaded
        del loaded  # a cohort of 1 mm volumes is large
        identity = {
            "kind": "slice_resnet",
            "task": question.task,
            "labels": list(question.labels),
            "recipe": recipe.to_dict(),
            "settings": asdict(preset.settings),
            "harmonizer": load_checkpoint(harmonizer)[1]["sha256"] if harmonizer else None,
        }
        fits = _Fits(inputs, preset, question, run, path.parent, identity)
        predicted, task, how = fits.folds(used) if preset.folds else fits.one_split(used)
        if run.rank == 0:
            training = inputs.of(fits.training)
            compared = None if whole is None else whole.of(fits.training)
            meta = {
                **identity,
                **_described(preset, recipe, question, used, training),
                **_results(question, predicted, how),
                "reference": {} if compared is None else reference_of(compared.grids, compared.features),
                "ended": {"epochs": len(task.losses), "why": task.ended or "the schedule's last epoch"},
                "licence": licence,
            }
            save_checkpoint(path, with_prefix("predictor", task.predictor.state_dict()), meta)
    return path


def _checked(recipe: Recipe) -> Recipe:
    """A recipe whose slices can be predicted from."""
    if not recipe.middle_slices:
        raise UsageError("the recipe names no middle slices.", "Say how many are read:  --slices N")
    if min(recipe.grid_shape[:2]) < SMALLEST:
        raise UsageError(
            f"slices of {recipe.grid_shape[0]} x {recipe.grid_shape[1]} are too small to predict from.",
            f"Give a --grid of at least {SMALLEST}.",
        )
    return recipe


def _read_slices(whole: ModelInputs, recipe: Recipe, harmonizer: Path | None, run: Run) -> ModelInputs:
    """The slices that are read of each volume, behind the harmonizer where there is one."""
    grids = whole.grids if harmonizer is None else harmonized(whole.grids, harmonizer, recipe, run)
    read = middle(recipe.grid_shape[2], recipe.middle_slices)
    return replace(whole, grids=np.ascontiguousarray(grids[..., read]))


def _described(
    preset: SlicePredictorPreset, recipe: Recipe, question: Question, used: Cohort, training: ModelInputs
) -> dict[str, Any]:
    """What the checkpoint says of the network and of whom it has learned from."""
    return {
        "network": {
            "width": preset.settings.width,
            "shape": list(recipe.grid_shape[:2]),
            "classify": bool(question.labels),
        },
        "sources": sorted({s.site for s in used.scans}),
        "target": None,
        "statistics": statistics(training.features),
        "cohort": {"training": describe(training)},
        "validation": preset.validation,
        "seed": preset.schedule.seed,
        "schedule": asdict(preset.schedule),
    }


@dataclass(frozen=True)
class _Predicted:
    """Answers for scans whose subjects the answering network never saw.

    folds : under pseudonyms, whom each network predicted, and whom it was trained on.
    """

    wanted: F64
    answers: F64
    subjects: list[str]
    folds: list[dict[str, list[str]]]


def _results(question: Question, predicted: _Predicted, how: str) -> dict[str, Any]:
    """What the checkpoint says of the held-out scans: every prediction, and the scores."""
    wanted, answers, subjects = predicted.wanted, predicted.answers, predicted.subjects
    who = {"subjects": [pseudonym(s) for s in subjects], "how": how, "folds": predicted.folds}
    if question.labels:
        said = {"positive": wanted.astype(int).tolist(), "probability": answers.tolist(), **who}
        return {
            "split": how,
            "held_out_predictions": said,
            "metrics": diagnosis_scores(wanted > 0.5, answers, subjects, how),
        }
    said = {"age": wanted.tolist(), "raw": answers.tolist(), **who}
    metrics = age_scores(wanted, answers, subjects, how)
    return {"split": how, "held_out_predictions": said, "metrics": metrics}


@dataclass
class _Fits:
    """The networks that one training needs: one, or one a fold and a last one."""

    inputs: ModelInputs
    preset: SlicePredictorPreset
    question: Question
    run: Run
    out: Path
    identity: dict[str, Any]
    training: Cohort = Cohort(())  # whom the network that is saved has learned from, validation included

    def one_split(self, used: Cohort) -> tuple[_Predicted, SlicePredictorTask, str]:
        """Train on a share of the subjects, predict the others."""
        share, seed = self.preset.held_out, self.preset.schedule.seed
        self.training, held = self._split(used, share)
        if not held.scans or not self.training.scans:
            raise UsageError(
                f"{share:.0%} of each site's subjects leaves nobody to train on, or nobody to score.",
                "Choose another --held-out, or use --folds.",
            )
        task = self._fit(self.training, "final")
        how = f"{share:.0%} of each site's subjects held out, seed {seed}"
        return self._predicted(task, self.training, held), task, how

    def folds(self, used: Cohort) -> tuple[_Predicted, SlicePredictorTask, str]:
        """Predict everyone by a network that did not see them, then train one on everyone."""
        k, seed = self.preset.folds, self.preset.schedule.seed
        strata = [part.folds(k, seed) for part in self.question.strata(used)]
        answered = []
        for f in range(k):
            training, held = (_joined([pairs[f][side] for pairs in strata]) for side in (0, 1))
            answered.append(self._predicted(self._fit(training, f"fold-{f + 1}"), training, held))
        self.training = used
        predicted = _Predicted(
            np.concatenate([a.wanted for a in answered]),
            np.concatenate([a.answers for a in answered]),
            [s for a in answered for s in a.subjects],
            [fold for a in answered for fold in a.folds],
        )
        return predicted, self._fit(used, "final"), f"{k}-fold cross-validation by subject, seed {seed}"

    def _split(self, cohort: Cohort, share: float) -> tuple[Cohort, Cohort]:
        """(kept, held out), the latter empty where a label would be missing from it."""
        pairs = [part.split(share, self.preset.schedule.seed) for part in self.question.strata(cohort)]
        if not all(held.scans for _, held in pairs):
            return cohort, Cohort(())
        return _joined([kept for kept, _ in pairs]), _joined([held for _, held in pairs])

    def _fit(self, cohort: Cohort, name: str) -> SlicePredictorTask:
        learning, stopping = self._split(cohort, self.preset.validation)
        inside, outside = self.inputs.of(learning), self.inputs.of(stopping)
        known, asked = self.question.values(inside), self.question.values(outside)
        task = SlicePredictorTask(
            inside.grids,
            known,
            outside.grids,
            asked,
            self.preset.settings,
            self.run,
            bool(self.question.labels),
        )
        # With what is wanted of each: a table whose ages were corrected does not go on from the wrong ones.
        who = {
            name: sorted(zip(part.sha256, wanted.tolist(), strict=True))
            for name, part, wanted in (("training", inside, known), ("validation", outside, asked))
        }
        fit(task, self.run, self.out / name, {**self.identity, **who})
        return task

    def _predicted(self, task: SlicePredictorTask, training: Cohort, held: Cohort) -> _Predicted:
        scans = self.inputs.of(held)
        wanted = self.question.values(scans).astype(np.float64)
        fold = {"subjects": pseudonyms(held), "trained_on": pseudonyms(training)}
        return _Predicted(wanted, task.predict(scans.grids), [s.subject for s in scans.scans], [fold])


def _joined(parts: Sequence[Cohort]) -> Cohort:
    return Cohort(tuple(scan for part in parts for scan in part.scans))
