"""Training a harmonizer from a cohort: split, fit, held-out scores, checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.recipe import Recipe
from hz_train.augment import Augmentation
from hz_train.checkpoint import load_checkpoint, save_checkpoint, with_prefix, without_prefix
from hz_train.cohort import Cohort
from hz_train.cyclegan_task import CycleGANTask, Settings, even, simulated
from hz_train.datasets import PreparedCohort, describe, load, statistics
from hz_train.fit import Run, Schedule, fit
from hz_train.losses import Weights
from hz_train.scores import score

F32 = NDArray[np.float32]
SCANNERS = 3  # simulated scanners a held-out head travels through when it is scored


@dataclass(frozen=True)
class Preset:
    """n4 : take every scan's receive field out before training, as the paper does."""

    schedule: Schedule
    settings: Settings
    n4: bool = True


PRESETS = {
    "paper": Preset(Schedule(), Settings()),
    # Minutes on a CPU: shows that a cohort is readable and that losses fall, no more than that.
    "quick": Preset(
        Schedule(epochs=4, batch=1, milestones=(), picture_every=1),
        Settings(Weights(restore=10.0), Augmentation.strong(), coarse=2, warmup=1),
        n4=False,
    ),
    # What models/reference.hz was trained with: hours of CPU, not days of GPU. Restoration, which has a
    # known answer, does most of the work; the adversarial epochs are few.
    "reference": Preset(
        Schedule(epochs=150, batch=1, lr=5e-5, milestones=(), precision="bf16", seed=2023, picture_every=10),
        Settings(
            Weights(restore=30.0),
            Augmentation.strong(),
            coarse=120,
            warmup=28,
            warmup_lr=1.5e-4,
            averaging=0.998,
        ),
    ),
}


def train_cyclegan(
    cohort: Cohort,
    source: Sequence[str],
    target: str,
    out: Path,
    preset: Preset,
    held_out: float = 0.15,
    recipe: Recipe | None = None,
    device: str = "auto",
    licence: str = "",
    start_from: Path | None = None,
) -> Path:
    """Train source sites to the target site; returns the checkpoint, `out`/harmonizer.safetensors.

    held_out : share of each site's subjects that training never sees and the scores are taken on.
    start_from : a checkpoint whose networks are gone on from, in place of random ones. With another seed or
        cohort than its own, its training subjects may be among the held-out ones.
    Raises UsageError where a site is empty or stands on both sides, before anything is read.
    """
    if target in source:
        raise UsageError(f"{target} is both source and target.", "Name different sites.")
    if not source:
        raise UsageError("no source site is given.", "Give --source SITE[,SITE...].")
    used = cohort.at([*source, target])
    training, held = used.split(held_out, preset.schedule.seed)
    for side, sites in (("source", source), ("target", [target])):
        if not any(scan.site in sites for scan in training.scans):
            raise UsageError(f"no {side} subject is left for training.", "Lower --held-out or add scans.")
    recipe = recipe or Recipe()
    prepared = load(used, recipe, preset.n4)

    def side(part: Cohort, sites: Sequence[str]) -> PreparedCohort:
        return prepared.of(Cohort(tuple(s for s in part.scans if s.site in sites)))

    train_x, train_y = side(training, source), side(training, [target])
    held_x, held_y = side(held, source), side(held, [target])
    run = Run.start(preset.schedule, device)
    task = CycleGANTask(train_x.grids, train_y.grids, held_x.grids, held_y.grids, preset.settings, run)
    origin = _go_on(task, start_from, recipe) if start_from else None
    identity = {
        "kind": "volume_cyclegan",
        "sources": list(source),
        "target": target,
        "held_out": held_out,
        "recipe": recipe.to_dict(),
        "settings": asdict(preset.settings),
        "n4": preset.n4,
        "started_from": origin,
        "scans": sorted(prepared.sha256),
    }
    fit(task, run, out, identity)
    path = out / "harmonizer.safetensors"
    if run.rank == 0:
        meta = {
            "kind": "volume_cyclegan",
            "network": {"width": preset.settings.width},
            "sources": list(source),
            "target": target,
            "recipe": recipe.to_dict(),
            "statistics": statistics(prepared.of(training).features),
            "cohort": {
                "training": describe(prepared.of(training)),
                "held_out": describe_or_none(prepared.of(held)),
            },
            "split": f"by subject, {held_out:.0%} of each site's subjects held out",
            "seed": preset.schedule.seed,
            "schedule": asdict(preset.schedule),
            "settings": asdict(preset.settings),
            "n4": preset.n4,
            "started_from": origin,
            "metrics": held_out_scores(task, held_x, held_y),
            "licence": licence,
        }
        tensors: dict[str, Any] = {}
        for name, network in (task.networks | {"generator": task.harmonizer}).items():
            if name != "average":
                tensors.update(with_prefix(name, network.state_dict()))
        save_checkpoint(path, tensors, meta)
    return path


def _go_on(task: CycleGANTask, checkpoint: Path, recipe: Recipe) -> dict[str, Any]:
    """Give a new task the networks of a checkpoint; returns what the new checkpoint says of the old one."""
    tensors, meta = load_checkpoint(checkpoint)
    if meta.get("kind") != "volume_cyclegan" or not Recipe.from_dict(meta["recipe"]).prepares_as(recipe):
        raise UsageError(
            f"{checkpoint.name} is no volume_cyclegan of this recipe.", "Name the checkpoint of one."
        )
    if meta["network"]["width"] != task.settings.width:
        raise UsageError(f"{checkpoint.name} has networks of width {meta['network']['width']}.")
    for name, network in task.networks.items():
        network.load_state_dict(without_prefix("generator" if name == "average" else name, tensors))
    return {key: meta.get(key) for key in ("sha256", "seed", "schedule", "settings", "started_from")}


def describe_or_none(prepared: PreparedCohort) -> dict[str, object] | None:
    """`describe`, or None for an empty part."""
    return describe(prepared) if len(prepared) else None


def held_out_scores(task: CycleGANTask, held_x: PreparedCohort, held_y: PreparedCohort) -> dict[str, Any]:
    """What the harmonizer does to subjects it never saw, seen through simulated scanners.

    restoration : mean |harmonized - real| inside the brain of target-site subjects, intensity units,
        where the input is the real scan through a simulated scanner; beside the same before harmonizing.
    travelling_head : mean pairwise |difference| between the same head through three simulated scanners,
        each divided by its brain mean, before and after.
    """
    strength = task.settings.augmentation or Augmentation.strong()
    scores: dict[str, Any] = {}
    if len(held_y):
        clean = even(held_y.grids, task.level)
        seen = simulated(clean, strength, seed=101)
        made = even(task.harmonize(seen), task.level)
        seen = even(seen, task.level)
        how = "held-out target-site scans through one simulated scanner each, all scaled to one brain mean"
        scores["restoration_error_before"] = score(
            [_gap(s, c, c) for s, c in zip(seen, clean, strict=True)], how
        )
        scores["restoration_error_after"] = score(
            [_gap(m, c, c) for m, c in zip(made, clean, strict=True)], how
        )
    heads = np.concatenate([held_x.grids, held_y.grids])
    if len(heads):
        views = [simulated(heads, strength, seed=201 + k) for k in range(SCANNERS)]
        after = [task.harmonize(view) for view in views]
        how = (
            f"held-out scans, all sites, through {SCANNERS} simulated scanners, each scaled by its brain mean"
        )
        scores["travelling_head_before"] = score(_pairwise(views, heads), how)
        scores["travelling_head_after"] = score(_pairwise(after, heads), how)
    return scores


def _gap(a: F32, b: F32, head: F32) -> float:
    return float(np.abs(a - b)[head > 0.02].mean())


def _pairwise(views: list[F32], heads: F32) -> list[float]:
    """Per head, the mean over scanner pairs of mean |a / mean(a) - b / mean(b)| inside the brain."""
    values = []
    for i, head in enumerate(heads):
        brain = head > 0.02
        scaled = [view[i][brain] / view[i][brain].mean() for view in views]
        pairs = [np.abs(scaled[a] - scaled[b]).mean() for a in range(len(views)) for b in range(a)]
        values.append(float(np.mean(pairs)))
    return values


def adjusted(preset: Preset, **changes: Any) -> Preset:
    """A preset with some fields of its schedule or settings replaced; None leaves a field as it is."""
    given = {k: v for k, v in changes.items() if v is not None}
    schedule = {k: v for k, v in given.items() if k in Schedule.__dataclass_fields__}
    settings = {k: v for k, v in given.items() if k in Settings.__dataclass_fields__}
    n4 = given.get("n4", preset.n4)
    return Preset(replace(preset.schedule, **schedule), replace(preset.settings, **settings), n4)
