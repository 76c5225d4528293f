"""What is compared: a method brings volumes of any site to the reference site."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import sha256_bytes
from hz_train.cohort import Cohort
from hz_train.cyclegan_training import train_cyclegan
from hz_train.datasets import ModelInputs
from hz_train.slice_training import train_canonical
from hz_train.studies.baselines import Blocks, ComBat, Nyul, Raw, ZScore
from hz_train.studies.presets import StudySettings, whom
from hz_train.studies.trained_harmonizer import TrainedHarmonizer, translate

F32 = NDArray[np.float32]


class Method(Protocol):
    """One way to make sites alike.

    features : `apply` gives means of 8 x 8 x 8 boxes in place of volumes, for predictors on features.
    seen : subjects and file hashes it was fitted on.
    """

    name: str
    features: bool
    seen: frozenset[str]

    def fit(self, training: ModelInputs, reference: str) -> None:
        """Learn from training scans of several sites; ages and groups are not looked at."""

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        """(n, D, H, W) float32 of these sites (one name a volume) as the reference site would show them."""


class CycleGAN:
    """A harmonizer of either system, trained inside the study.

    form : "pairs", one network for each other site, or "many", one for all of them.
    Scans of the reference site stay as they are.
    """

    features = False

    def __init__(self, settings: StudySettings, seed: int, form: str) -> None:
        self.settings, self.seed, self.form = settings, seed, form
        words = {"pairs": "one a site", "many": "many to one"}
        self.name = f"{'3D' if settings.system == 'volume' else 'slice'} CycleGAN, {words[form]}"
        self.seen: frozenset[str] = frozenset()
        self.reference = ""
        self.checkpoints: dict[str, Path] = {}

    def fit(self, training: ModelInputs, reference: str) -> None:
        cohort = Cohort(training.scans)
        self.reference = reference
        others = [site for site in cohort.sites if site != reference]
        groups = [[site] for site in others] if self.form == "pairs" else [others]
        for sources in groups:
            used = cohort.at([*sources, reference])
            key = _key(training.of(used), sources, reference, self.settings)
            path = self.settings.work(self.seed, f"harmonizer-{key}") / "harmonizer.safetensors"
            if not path.with_suffix(".json").exists():
                made = train(used, sources, reference, path.parent, self.settings, self.seed)
                assert made == path, "the training functions name their checkpoint harmonizer.safetensors"
            self.checkpoints.update(dict.fromkeys(sources, path))
        self.seen = whom(training)

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        """Raises UsageError for a site that it was not trained on."""
        made = volumes.copy()
        for site in sorted(set(sites) - {self.reference}):
            if site not in self.checkpoints:
                raise UsageError(
                    f"{self.name} was not trained on site {site}.", "Add its scans to the cohort."
                )
            rows = np.flatnonzero([s == site for s in sites])
            made[rows] = translate(self.checkpoints[site], volumes[rows], self.settings.device)
        return made

    def reverse(self, volumes: F32, site: str) -> F32:
        """Volumes of the reference site as `site` would show them; only in the form "pairs"."""
        return translate(self.checkpoints[site], volumes, self.settings.device, "reverse")


def methods(settings: StudySettings, seed: int) -> list[Method]:
    """Every method of a study, unfitted: raw, the other baselines, those on features, the harmonizers."""
    found: list[Method] = [Raw(), ZScore(), Nyul(), Blocks(), ComBat()]
    if settings.harmonizer is not None:
        return [*found, TrainedHarmonizer(settings.harmonizer, settings.device)]
    forms = ("pairs", "many") if settings.form == "both" else (settings.form,)
    return [*found, *(CycleGAN(settings, seed, form) for form in forms)]


def train(
    cohort: Cohort, sources: Sequence[str], target: str, out: Path, settings: StudySettings, seed: int
) -> Path:
    """Train a harmonizer of the study's system on all of `cohort`; returns its checkpoint.

    Nobody is held out here: the study has done so already.
    """
    preset = settings.preset.harmonizer
    preset = replace(preset, schedule=replace(preset.schedule, seed=seed), n4=settings.preset.n4)
    trained = train_canonical if settings.system == "slice" else train_cyclegan
    return trained(
        cohort, sources, target, out, preset, held_out=0.0, recipe=settings.recipe, device=settings.device
    )


def _key(scans: ModelInputs, sources: Sequence[str], target: str, settings: StudySettings) -> str:
    """Short name of everything that decides a harmonizer, so that studies share it and never mix it up."""
    where = sorted((sha, scan.site) for sha, scan in zip(scans.sha256, scans.scans, strict=True))
    # Not the predictor's part of the preset: a study with another predictor goes on with the same harmonizer.
    how = [asdict(settings.preset.harmonizer), settings.recipe.to_dict(), settings.preset.n4]
    decides = [where, sorted(sources), target, settings.system, how]
    return sha256_bytes(json.dumps(decides, sort_keys=True, default=str).encode())[:12]
