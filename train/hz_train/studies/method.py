"""What is compared: a method brings volumes of any site to the reference site."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import sha256_bytes, sha256_file
from hz_runtime.model_space.recipe import Recipe
from hz_train.apply import applied
from hz_train.checkpoint import load_checkpoint, without_prefix
from hz_train.cohort import Cohort
from hz_train.cyclegan_training import train_cyclegan
from hz_train.datasets import ModelInputs
from hz_train.fit import Run, Schedule
from hz_train.harmonizers import GENERATORS
from hz_train.slice_training import train_canonical
from hz_train.studies.baselines import Blocks, ComBat, Nyul, Raw, ZScore
from hz_train.studies.presets import StudySettings, whom

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


class Checkpoint:
    """A harmonizer that was trained before; it is judged, not fitted.

    Raises Leak through `refuse_leak` where the checkpoint names a scored scan among its training scans.
    """

    features = False

    def __init__(self, path: Path, device: str = "auto") -> None:
        self.path, self.device = path, device
        self.meta = harmonizer_meta(path)
        self.name = f"{'3D' if self.meta['kind'] == 'volume_cyclegan' else 'slice'} CycleGAN, {path.name}"
        self.seen: frozenset[str] = frozenset(self.meta.get("training_scans") or ())
        self.reference = str(self.meta["target"])

    def fit(self, training: ModelInputs, reference: str) -> None:
        """Nothing is learned. Raises UsageError where it maps to another site."""
        if reference != self.reference:
            raise UsageError(
                f"{self.path.name} maps to {self.reference}, not to {reference}.",
                f"Give --reference {self.reference}, or another checkpoint.",
            )

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        made = volumes.copy()
        rows = np.flatnonzero([site != self.reference for site in sites])
        if rows.size:
            made[rows] = translate(self.path, volumes[rows], self.device)
        return made


def harmonizer_meta(path: Path) -> dict[str, Any]:
    """What a harmonizer checkpoint says of itself. Raises UsageError for another kind of checkpoint."""
    meta = load_checkpoint(path)[1]
    if meta.get("kind") not in GENERATORS:
        raise UsageError(
            f"{path.name} is a checkpoint of kind {meta.get('kind')}, not a harmonizer.",
            "Give a checkpoint of hz-train cyclegan or hz-train canonical.",
        )
    return meta


def system_of(path: Path) -> str:
    """ "volume" or "slice": the system of a harmonizer checkpoint."""
    return "volume" if harmonizer_meta(path)["kind"] == "volume_cyclegan" else "slice"


def unseen(cohort: Cohort, path: Path) -> Cohort:
    """The scans of those subjects of whom a harmonizer checkpoint was trained on no scan.

    Told by the hashes of the files, so that a subject's rescans go with the scan that was seen.
    Raises UsageError where nobody is left, and for another kind of checkpoint.
    """
    trained_on = set(harmonizer_meta(path).get("training_scans") or ())
    seen = {s.subject for s in cohort.scans if sha256_file(s.path) in trained_on}
    left = cohort.of(set(cohort.subjects) - seen)
    if not left.scans:
        raise UsageError(
            f"{path.name} was trained on all {len(seen)} subjects of this cohort.",
            "Give a cohort with subjects that it has not seen.",
        )
    return left


def recipe_of(path: Path) -> Recipe:
    """How a harmonizer checkpoint's scans are brought to model space."""
    return Recipe.from_dict(harmonizer_meta(path)["recipe"])


def methods(settings: StudySettings, seed: int) -> list[Method]:
    """Every method of a study, unfitted: raw, the other baselines, those on features, the harmonizers."""
    found: list[Method] = [Raw(), ZScore(), Nyul(), Blocks(), ComBat()]
    if settings.harmonizer is not None:
        return [*found, Checkpoint(settings.harmonizer, settings.device)]
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


def translate(checkpoint: Path, volumes: F32, device: str = "auto", direction: str = "generator") -> F32:
    """(n, D, H, W) float32 through one generator of a harmonizer checkpoint, to the same shape in [0, 1].

    direction : "generator", to the target site, or "reverse", back from it. Raises UsageError for a reverse
    generator that has to be told the site.
    """
    tensors, meta = load_checkpoint(checkpoint)
    weights = without_prefix(direction, tensors)
    if not weights or (direction == "reverse" and meta.get("conditional")):
        raise UsageError(
            f"{checkpoint.name} holds no {direction} generator of a single site.",
            "Train one harmonizer for each pair of sites.",
        )
    network = GENERATORS[meta["kind"]](**meta["network"])
    network.load_state_dict(weights)
    run = Run.start(Schedule(), device)
    return np.clip(applied(network.eval().to(run.device), volumes, run), 0, 1)


def _key(scans: ModelInputs, sources: Sequence[str], target: str, settings: StudySettings) -> str:
    """Short name of everything that decides a harmonizer, so that studies share it and never mix it up."""
    where = sorted((sha, scan.site) for sha, scan in zip(scans.sha256, scans.scans, strict=True))
    # Not the predictor's part of the preset: a study with another predictor goes on with the same harmonizer.
    how = [asdict(settings.preset.harmonizer), settings.recipe.to_dict(), settings.preset.n4]
    decides = [where, sorted(sources), target, settings.system, how]
    return sha256_bytes(json.dumps(decides, sort_keys=True, default=str).encode())[:12]
