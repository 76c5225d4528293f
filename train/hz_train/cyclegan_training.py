"""Training a harmonizer from a cohort, of volumes or of slices: split, fit, held-out scores, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.model_space.outliers import reference_of
from hz_runtime.model_space.recipe import Recipe
from hz_train.augment import Augmentation, scaled_as
from hz_train.checkpoint import load_checkpoint, save_checkpoint, with_prefix, without_prefix
from hz_train.cohort import Cohort
from hz_train.condition import one_hot
from hz_train.cyclegan_task import CycleGANTask, Settings, scanner_view
from hz_train.datasets import ModelInputs, describe, load, statistics
from hz_train.fit import Run, Schedule, fit
from hz_train.harmonizers import same_model_space
from hz_train.levels import grey_white
from hz_train.losses import Weights
from hz_train.precision import settled
from hz_train.scores import score

F32 = NDArray[np.float32]
IDENTITY = "target_grey_white_change"  # the score that export refuses a harmonizer by
SCANNERS = 3  # simulated scanners a held-out head travels through when it is scored


@dataclass(frozen=True)
class Preset:
    """n4 : take every scan's receive field out before training, as the paper does.
    conditional : with several source sites, tell the reverse generator which one it leads back to
        (Bashyam 2020); otherwise, and with one source, the sources are one pool.
    """

    schedule: Schedule
    settings: Settings
    n4: bool = True
    conditional: bool = False


@dataclass(frozen=True)
class System:
    """What differs between the two published harmonizers, for one training procedure.

    kind : of the checkpoint.  task : what is fitted.  network : settings to the arguments its forward
    generator is built with.
    """

    kind: str
    task: type[CycleGANTask]
    network: Callable[[Any], dict[str, Any]]


VOLUMES = System("volume_cyclegan", CycleGANTask, lambda settings: {"width": settings.width})

# Of volumes, by preset; others have the paper's 64^3. An eighth of the voxels: minutes, not half an hour.
GRIDS = {"quick": (32, 32, 32)}
PRESETS = {
    "paper": Preset(Schedule(), Settings(), conditional=True),
    # Minutes on a CPU: shows that a cohort is readable and that losses fall, no more than that. Two volumes a
    # step: one alone, so small, torch 2.13 convolves without oneDNN, slower than two
    # (findings/torch_conv3d_one_volume.sh).
    "quick": Preset(
        Schedule(epochs=4, batch=2, milestones=(), precision="auto", picture_every=1),
        Settings(Weights(restore=10.0), Augmentation.strong(), coarse=2, warmup=1),
        n4=False,
    ),
    # Hours of CPU, not days of GPU. Restoration, which has a known answer, does most of the work; the
    # adversarial epochs are few. The reference bundle went on from such a training by restoration alone.
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
    system: System = VOLUMES,
) -> Path:
    """Train source sites to the target site; returns the checkpoint, `out`/harmonizer.safetensors.

    held_out : share of each site's subjects that training never sees and the scores are taken on.
    start_from : a checkpoint whose networks are gone on from, in place of random ones. With another seed or
        cohort than its own, its training subjects may be among the held-out ones; their scans count as
        training scans in the new checkpoint, too. A network it does not hold, or a reverse generator that
        tells other sites apart, starts anew.
    Raises UsageError where a site is empty or stands on both sides, before anything is read.
    """
    sources = _checked_sources(source, target)
    preset = replace(preset, schedule=settled(preset.schedule, device, out))
    recipe = recipe or Recipe()
    augmentation = scaled_as(recipe, preset.settings.augmentation)
    preset = replace(preset, settings=replace(preset.settings, augmentation=augmentation))
    used = cohort.at([*sources, target])
    training, held = _split(used, sources, target, held_out, preset.schedule.seed)
    inputs = load(used, recipe, preset.n4)
    plan = _Plan(system, preset, sources, target, held_out, recipe, inputs.of(training), inputs.of(held))
    del inputs  # the plan holds copies, and a cohort of 1 mm volumes is large
    with Run.start(preset.schedule, device) as run:
        task = plan.task(run)
        origin = _go_on(task, start_from, plan)
        fit(task, run, out, plan.identity(origin))
        path = out / "harmonizer.safetensors"
        if run.rank == 0:
            facts = {"training_scans": _seen(plan.training, start_from), "licence": licence}
            save_checkpoint(
                path,
                _tensors(task),
                {**plan.described(origin, task.level), **facts, "metrics": plan.scores(task)},
            )
    return path


def _checked_sources(source: Sequence[str], target: str) -> list[str]:
    """The source sites, each once."""
    if target in source:
        raise UsageError(f"{target} is both source and target.", "Name different sites.")
    if not source:
        raise UsageError("no source site is given.", "Give --source SITE[,SITE...].")
    return list(dict.fromkeys(source))


def _split(
    used: Cohort, sources: Sequence[str], target: str, held_out: float, seed: int
) -> tuple[Cohort, Cohort]:
    """(training, held-out) subjects, the former with scans of both sides."""
    training, held = used.split(held_out, seed)
    for name, sites in (("source", sources), ("target", [target])):
        if not any(scan.site in sites for scan in training.scans):
            raise UsageError(f"no {name} subject is left for training.", "Lower --held-out or add scans.")
    return training, held


@dataclass(frozen=True)
class _Plan:
    """One training: what is fitted, to which scans, and what its files say of that."""

    system: System
    preset: Preset
    sources: list[str]
    target: str
    held_out: float
    recipe: Recipe
    training: ModelInputs
    held: ModelInputs

    @property
    def apart(self) -> list[str]:
        """The sites that the reverse generator tells apart; none where the sources are one pool."""
        return list(self.sources) if self.preset.conditional and len(self.sources) > 1 else []

    @property
    def network(self) -> dict[str, Any]:
        """What the forward generator is built with."""
        return self.system.network(self.preset.settings)

    def task(self, run: Run) -> CycleGANTask:
        """The networks, new, and the scans that they are fitted to."""
        x, y = _sides(self.training, self.target)
        held_x, held_y = _sides(self.held, self.target)
        condition = one_hot([scan.site for scan in x.scans], self.apart) if self.apart else None
        grids = x.grids, y.grids, held_x.grids, held_y.grids
        return self.system.task(*grids, self.preset.settings, run, condition)

    def scores(self, task: CycleGANTask) -> dict[str, Any]:
        """What the harmonizer does to the held-out scans."""
        return held_out_scores(task, *_sides(self.held, self.target))

    def identity(self, origin: dict[str, Any] | None) -> dict[str, Any]:
        """Everything besides the schedule that decides the weights."""
        parts = self.training, self.held
        scans = [pair for part in parts for pair in zip(part.sha256, part.scans, strict=True)]
        return {
            "kind": self.system.kind,
            "sources": list(self.sources),
            "target": self.target,
            "held_out": self.held_out,
            "recipe": self.recipe.to_dict(),
            "settings": asdict(self.preset.settings),
            "n4": self.preset.n4,
            "started_from": origin,
            "scans": sorted([sha, scan.site, scan.subject] for sha, scan in scans),
            **({"conditional": True} if self.apart else {}),
        }

    def _without_field(self) -> dict[str, Any]:
        """What raw heads, whose fields are taken out, are compared with; nothing where training left them."""
        features = self.training.features_n4
        if not features:
            return {}
        return {
            "statistics_n4": statistics(features),
            "reference_n4": reference_of(self.training.grids, features),
        }

    def described(self, origin: dict[str, Any] | None, level: float) -> dict[str, Any]:
        """What the checkpoint says of itself, its scores and whom it has seen aside.

        level : of the target site's training scans; harmonized ones get it where the anchor is white matter.
        """
        white = round(level, 4) if self.preset.settings.anchor == "white" else 0.0
        return {
            "kind": self.system.kind,
            "network": self.network,
            "sources": list(self.sources),
            "conditional": bool(self.apart),
            "target": self.target,
            "recipe": replace(self.recipe, white_level=white).to_dict(),
            "statistics": statistics(self.training.features),
            "reference": reference_of(self.training.grids, self.training.features),
            **self._without_field(),
            "cohort": {"training": describe(self.training), "held_out": describe_or_none(self.held)},
            "split": f"by subject, {self.held_out:.0%} of each site's subjects held out",
            "seed": self.preset.schedule.seed,
            "schedule": asdict(self.preset.schedule),
            "settings": asdict(self.preset.settings),
            "n4": self.preset.n4,
            "started_from": origin,
        }


def _sides(part: ModelInputs, target: str) -> tuple[ModelInputs, ModelInputs]:
    """(scans of the source sites, scans of the target site)."""
    source, aim = (Cohort(tuple(s for s in part.scans if (s.site == target) is at)) for at in (False, True))
    return part.of(source), part.of(aim)


def _tensors(task: CycleGANTask) -> dict[str, Any]:
    """The networks as they are saved, the average in the generator's place."""
    tensors: dict[str, Any] = {}
    for name, network in (task.networks | {"generator": task.harmonizer}).items():
        if name != "average":
            tensors.update(with_prefix(name, network.state_dict()))
    return tensors


def _seen(training: ModelInputs, start_from: Path | None) -> list[str]:
    """Hashes of all scans that the weights come from; none where those of the first part are not known.

    By content, so that a study can tell whether it would score the network on what it has seen; with those of
    the checkpoint that training went on from, whose weights remember them.
    """
    before = [] if start_from is None else load_checkpoint(start_from)[1].get("training_scans")
    if start_from is not None and not before:
        return []
    return sorted({*training.sha256, *(before or ())})


def _go_on(task: CycleGANTask, checkpoint: Path | None, plan: _Plan) -> dict[str, Any] | None:
    """Give a new task the networks of a checkpoint; returns what the new checkpoint says of the old one."""
    if checkpoint is None:
        return None
    tensors, meta = load_checkpoint(checkpoint)
    # Another intensity rule is what going on may be for: weights adapt to it, not to another grid.
    recipe = replace(plan.recipe, intensity=(meta.get("recipe") or {}).get("intensity", "min-max"))
    if meta.get("kind") != plan.system.kind or not same_model_space(meta, recipe):
        raise UsageError(
            f"{checkpoint.name} is no {plan.system.kind} of this recipe.", "Name the checkpoint of one."
        )
    if meta["network"] != plan.network:
        size = ", ".join(f"{key} {value}" for key, value in meta["network"].items())
        raise UsageError(f"{checkpoint.name} has networks of {size}.", "Ask for the same ones.")
    anew = []
    for name, network in task.networks.items():
        state = without_prefix("generator" if name == "average" else name, tensors)
        other_sites = name == "reverse" and (meta["sources"] if meta.get("conditional") else []) != plan.apart
        if state and not other_sites:
            network.load_state_dict(state)
        else:
            anew.append(name)
    kept = {key: meta.get(key) for key in ("sha256", "seed", "schedule", "settings", "started_from")}
    return {**kept, "anew": anew} if anew else kept


def describe_or_none(inputs: ModelInputs) -> dict[str, object] | None:
    """`describe`, or None for an empty part."""
    return describe(inputs) if len(inputs) else None


def held_out_scores(task: CycleGANTask, held_x: ModelInputs, held_y: ModelInputs) -> dict[str, Any]:
    """What the harmonizer does to subjects it never saw, seen through simulated scanners.

    restoration : mean |harmonized - real| inside the brain of target-site subjects, intensity units,
        where the input is the real scan through a simulated scanner; beside the same before harmonizing.
    target_grey_white_change : of the target site's scans as they are, by how many percent the harmonizer
        changes their ratio of grey to white matter, which it should leave alone.
    travelling_head : mean pairwise |difference| between the same head through three simulated scanners,
        each divided by its brain mean, before and after.
    """
    strength = task.settings.augmentation or Augmentation.strong()
    columns: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        columns.setdefault(name, []).append(value)

    # Scan by scan: a 1 mm volume is 30 MB, and every one is needed in seven forms.
    for i, grid in enumerate(held_y.grids):
        clean = task.even(grid[None])
        seen = scanner_view(clean[0], strength, 101, i)[None]
        made = task.even(task.harmonize(seen))
        note("restoration_error_before", _gap(task.even(seen)[0], clean[0], clean[0]))
        note("restoration_error_after", _gap(made[0], clean[0], clean[0]))
        itself = task.harmonize(grid[None])[0]
        note(IDENTITY, 100 * (grey_white(itself, grid) / grey_white(grid, grid) - 1))
    for i, head in enumerate([*held_x.grids, *held_y.grids]):
        views = np.stack([scanner_view(head, strength, 201 + k, i) for k in range(SCANNERS)])
        note("travelling_head_before", _pairwise(views, head))
        note("travelling_head_after", _pairwise(task.harmonize(views), head))
    one = "held-out target-site scans through one simulated scanner each, all scaled to one brain mean"
    views_of = f"held-out scans, all sites, through {SCANNERS} simulated scanners"
    several = f"{views_of}, each scaled by its brain mean"
    how = {IDENTITY: "held-out target-site scans as they are, percent"}
    return {
        k: score(v, how.get(k, one if k.startswith("restoration") else several)) for k, v in columns.items()
    }


def _gap(a: F32, b: F32, head: F32) -> float:
    return float(np.abs(a - b)[head > 0.02].mean())


def _pairwise(views: F32, head: F32) -> float:
    """Mean over pairs of views (n, D, H, W) of mean |a / mean(a) - b / mean(b)| inside the head's brain."""
    brain = head > 0.02
    scaled = [view[brain] / view[brain].mean() for view in views]
    return float(np.mean([np.abs(scaled[a] - scaled[b]).mean() for a in range(len(views)) for b in range(a)]))


def adjusted(preset: Preset, **changes: Any) -> Preset:
    """A preset with some fields of its schedule or settings replaced; None leaves a field as it is.

    restore : weight of that loss.  unchanged, gain : of the simulated scanners (`Augmentation`).
    """
    given = {k: v for k, v in changes.items() if v is not None}
    scanners = {k: given.pop(k) for k in ("unchanged", "gain") if k in given}
    if scanners and preset.settings.augmentation is not None:
        given["augmentation"] = replace(preset.settings.augmentation, **scanners)
    if "restore" in given:
        given["weights"] = replace(preset.settings.weights, restore=given["restore"])
    schedule = {k: v for k, v in given.items() if k in Schedule.__dataclass_fields__}
    settings = {k: v for k, v in given.items() if k in type(preset.settings).__dataclass_fields__}
    own = {k: given[k] for k in ("n4", "conditional") if k in given}
    schedules = replace(preset.schedule, **schedule)
    return replace(preset, schedule=schedules, settings=replace(preset.settings, **settings), **own)
