"""How large a study is, what it runs with, and who is held out of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hz_runtime.errors import UsageError
from hz_runtime.model_space.recipe import Recipe
from hz_train.age_task import AgeSettings
from hz_train.age_training import PRESETS as AGE_PRESETS
from hz_train.augment import Augmentation
from hz_train.cohort import Cohort
from hz_train.cyclegan_task import Settings
from hz_train.cyclegan_training import PRESETS as CYCLEGAN_PRESETS
from hz_train.cyclegan_training import Preset
from hz_train.datasets import ModelInputs
from hz_train.fit import Schedule
from hz_train.slice_predictor_task import SlicePredictorSettings
from hz_train.slice_predictor_training import PRESETS as PREDICTOR_PRESETS
from hz_train.slice_recipes import slice_recipe
from hz_train.slice_task import SliceSettings
from hz_train.slice_training import GRIDS
from hz_train.slice_training import PRESETS as SLICE_PRESETS

LEAST_SUBJECTS = 4  # at each site: two to fit on, one or two to score


@dataclass(frozen=True)
class StudyPreset:
    """Sizes and schedules of one system.

    recipe : the grid that everything works on.
    harmonizer : of the CycleGAN, as `train_cyclegan` or `train_canonical` take it.
    predictor, settings : schedule and settings of the network that reads age or diagnosis.
    n4 : take every scan's receive field out before anything else.
    """

    recipe: Recipe
    harmonizer: Preset
    predictor: Schedule
    settings: AgeSettings | SlicePredictorSettings
    n4: bool = False


def study_preset(name: str, system: str) -> StudyPreset:
    """`quick`, `reference` or `paper` for the `volume` or the `slice` system."""
    return (_slice_presets if system == "slice" else _volume_presets)()[name]


def _volume_presets() -> dict[str, StudyPreset]:
    adam = (0.9, 0.999)
    return {
        # Seconds on tiny volumes: every step of a study runs, nothing is learned.
        "quick": StudyPreset(
            Recipe(grid_shape=(32, 32, 32)),
            Preset(Schedule(epochs=1, batch=2, milestones=(), picture_every=0), Settings(width=2), n4=False),
            Schedule(epochs=2, batch=4, lr=1e-3, milestones=(), betas=adam, picture_every=0),
            AgeSettings(width=2),
        ),
        # Simulated scanners and restoration beside the paper's losses. Hours on a CPU.
        "reference": StudyPreset(
            Recipe(),
            replace(CYCLEGAN_PRESETS["reference"], n4=False),
            AGE_PRESETS["reference"].schedule,
            AgeSettings(Augmentation.mild()),
        ),
        # As published; wants a GPU.
        "paper": StudyPreset(
            Recipe(),
            CYCLEGAN_PRESETS["paper"],
            AGE_PRESETS["paper"].schedule,
            AgeSettings(),
            n4=CYCLEGAN_PRESETS["paper"].n4,
        ),
    }


def _slice_presets() -> dict[str, StudyPreset]:
    found = {}
    # What the training commands call "small" is 64^3: hours on a CPU, minutes on a GPU.
    for name, theirs in (("quick", "quick"), ("reference", "small"), ("paper", "paper")):
        predictor = PREDICTOR_PRESETS[theirs]
        found[name] = StudyPreset(
            slice_recipe(GRIDS[theirs]), SLICE_PRESETS[theirs], predictor.schedule, predictor.settings
        )
    quick = found["quick"]
    harmonizer = replace(quick.harmonizer, settings=SliceSettings(width=4, blocks=1, per_scan=2))
    return {**found, "quick": replace(quick, harmonizer=harmonizer)}


def on_grid(preset: StudyPreset, size: int) -> StudyPreset:
    """The preset on `size`^3 voxels. Raises UsageError for a size that the networks cannot take."""
    if size % 8:
        raise UsageError(f"a grid of {size}^3 cannot be halved three times.", "Give a multiple of 8.")
    recipe = preset.recipe
    grid = (size, size, size)
    made = slice_recipe(grid) if recipe.middle_slices else replace(recipe, grid_shape=grid)
    return replace(preset, recipe=made)


@dataclass(frozen=True)
class StudySettings:
    """What a study runs with.

    table : the participants.tsv.  out : folder of the results; checkpoints go to `out`/work, where an
    interrupted study finds them again.
    form : "pairs" trains one harmonizer a site, "many" one for all sites, "both" compares the two.
    changes : options of the command that replaced fields of the preset, for the report.
    harmonizer : a checkpoint to judge in place of training one.  labels : (negative, positive) groups of a
    diagnosis study; None where the cohort has just two.
    """

    reference: str
    preset: StudyPreset
    table: Path
    out: Path
    seeds: tuple[int, ...] = (0,)
    system: str = "volume"
    form: str = "many"
    harmonizer: Path | None = None
    held_out: float = 0.3
    labels: tuple[str, str] | None = None
    device: str = "auto"
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.preset.recipe

    def work(self, seed: int, name: str) -> Path:
        """Folder for checkpoints of one seed."""
        return self.out / "work" / f"seed-{seed}" / name

    def described(self) -> dict[str, Any]:
        """Plain JSON types for the report; names of files, not where they lie."""
        preset = asdict(self.preset)
        preset["recipe"] = self.recipe.to_dict()
        if self.harmonizer is not None:
            preset["harmonizer"] = None  # none is trained
        return {
            "reference": self.reference,
            "system": self.system,
            "form": self.form,
            "seeds": list(self.seeds),
            "held_out": self.held_out,
            "cohort": self.table.name,
            "harmonizer": self.harmonizer.name if self.harmonizer else None,
            "labels": list(self.labels) if self.labels else None,
            "changes": self.changes,
            "preset": preset,
        }


class Leak(UsageError):
    """A scan that scores a method was also used to fit it."""


def whom(inputs: ModelInputs) -> frozenset[str]:
    """Subjects and file hashes: a copy of a scan under another subject's name is still the same scan."""
    return frozenset(s.subject for s in inputs.scans) | frozenset(inputs.sha256)


def refuse_leak(what: str, seen: Iterable[str], scored: ModelInputs) -> None:
    """Raise Leak where a scored subject, or a copy of a scored file, is among those `what` was fitted on."""
    both = whom(scored) & frozenset(seen)
    if both:
        raise Leak(
            f"{what} was fitted on {len(both)} of the subjects or files that are to score it.",
            "Hold them out (another cohort table or seed), or train the harmonizer inside the study.",
        )


def split_cohort(inputs: ModelInputs, held_out: float, seed: int) -> tuple[ModelInputs, ModelInputs]:
    """(training, test): a share of each site's groups held out, whole subjects, the same for every method.

    By group in every study, not only where a diagnosis needs it: studies in one folder then share their
    harmonizers. A subject that was scanned at two sites is on one side with all scans (`Cohort.split`).
    A file that appears under two names stays in training, or once among the held-out.
    Raises Leak where the two sides share a scan all the same, UsageError where one has no scan of a site.
    """
    cohort = Cohort(inputs.scans)
    groups = sorted({s.group for s in cohort.scans})
    parts = [Cohort(tuple(s for s in cohort.scans if s.group == g)) for g in groups]
    kept = {s for part in parts for s in part.split(held_out, seed)[0].subjects}
    training = inputs.of(cohort.of(kept))
    copies = set(training.sha256)
    rest = inputs.of(cohort.of(set(cohort.subjects) - kept))
    first = {sha: s.path for s, sha in reversed([*zip(rest.scans, rest.sha256, strict=True)])}
    fresh = {path for sha, path in first.items() if sha not in copies}
    test = inputs.of(Cohort(tuple(s for s in rest.scans if s.path in fresh)))
    refuse_leak("the training side", whom(training), test)
    for side, what in ((test, "held out"), (training, "left to train on")):
        bare = sorted(set(cohort.sites) - {s.site for s in side.scans})
        if bare:
            raise UsageError(
                f"nobody of {', '.join(bare)} is {what}: each group is divided, and they are small.",
                "Change --held-out, or merge groups in the cohort table.",
            )
    return training, test


def check_cohort(cohort: Cohort, settings: StudySettings) -> None:
    """Raise UsageError where a study of several sites cannot be done: one site, no reference, too few."""
    sites = cohort.sites
    if settings.reference not in sites:
        raise UsageError(
            f"the reference site {settings.reference!r} has no scans; the cohort has {', '.join(sites)}.",
            "Name one of them with --reference.",
        )
    if len(sites) < 2:
        raise UsageError(
            f"every scan is from {settings.reference}: there is no second site to harmonize.",
            "Give a cohort of at least two sites.",
        )
    for site in sites:
        n = len(cohort.at([site]).subjects)
        if n < LEAST_SUBJECTS:
            raise UsageError(
                f"site {site} has {n} subjects; a study needs at least {LEAST_SUBJECTS} of each site.",
                "Add scans, or leave the site out of the cohort table.",
            )
