"""A harmonizer that was trained before the study, a bundle or a checkpoint; it is judged, not fitted.

It answers twice: on the grid, as every method does, and at a scan's own resolution, by the very code with
which hz-run writes results. Which scans a bundle was trained on it does not say; it names their sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hz_runtime.backends.base import check_batch, check_outputs
from hz_runtime.bundle.manifest import ModelEntry, TensorSpec
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import UsageError
from hz_runtime.inference.open import NetworkOptions, open_networks
from hz_runtime.inference.predictors import Harmonizer
from hz_runtime.inference.slice_wise import SLICE_RANK
from hz_runtime.io.atomic import sha256_file
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.levels import anchored
from hz_runtime.model_space.recipe import Recipe
from hz_train.apply import applied
from hz_train.checkpoint import load_checkpoint, without_prefix
from hz_train.cohort import Cohort
from hz_train.datasets import ModelInputs
from hz_train.fit import Run, Schedule
from hz_train.harmonizers import GENERATORS, read_harmonizer

F32 = NDArray[np.float32]


class TrainedHarmonizer:
    """A bundle or a checkpoint as a method of a study.

    seen : hashes of the files that a checkpoint was trained on; a scored one among them ends the study.
    reference : the site that it maps to.  known_sites : the sites that it was trained on, and `reference`.
    Raises UsageError for another kind of checkpoint, BundleError for a damaged bundle.
    """

    features = False

    def __init__(self, path: Path, device: str = "auto") -> None:
        self.path, self.device = path, device
        facts = harmonizer_facts(path)
        self.name = f"{'slice' if facts.slice_wise else '3D'} CycleGAN, {path.name}"
        self.recipe, self.targets = facts.recipe, facts.targets
        self.seen = facts.seen
        self.known_sites = frozenset((*facts.sources, *facts.targets))
        self.reference = facts.targets[0]

    def fit(self, training: ModelInputs, reference: str) -> None:
        """Nothing is learned. Raises UsageError where it maps to another site."""
        self.map_to(reference)

    def map_to(self, reference: str) -> None:
        """Choose the site to map to, of those that a bundle may have. Raises UsageError for another one."""
        if reference not in self.targets:
            raise UsageError(
                f"{self.path.name} maps to {', '.join(self.targets)}, not to {reference}.",
                f"Give --reference {self.targets[0]}, or another harmonizer.",
            )
        self.reference = reference

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        """(n, D, H, W) float32 in [0, 1]; scans of the reference site stay as they are."""
        made = volumes.copy()
        rows = np.flatnonzero([site != self.reference for site in sites])
        if rows.size and is_bundle(self.path):
            made[rows] = np.stack([self.runtime(volume) for volume in volumes[rows]])
        elif rows.size:
            made[rows] = translate(self.path, volumes[rows], self.device)
        return made

    @cached_property
    def runtime(self) -> Harmonizer:
        """The harmonizer as hz-run calls it: a bundle's on the fastest engine, a checkpoint's in torch."""
        if is_bundle(self.path):
            return open_networks(load_bundle(self.path), NetworkOptions(to=self.reference)).harmonizer
        return _in_torch(self.path, self.recipe, self.device)

    def written(self, volume: Volume) -> F32:
        """A scan as hz-run writes it, (I, J, K) float32 in [0, 1] on the voxels of `volume.data`.

        Every scan goes through the network, those of the reference site, too. Raises NoBrain as hz-run does.
        """
        data = volume.data if volume.missing is None else np.where(volume.missing, np.nan, volume.data)
        return self.runtime.volume(data, volume.affine).native


@dataclass(frozen=True)
class HarmonizerFacts:
    """What a bundle or a checkpoint says of its harmonizer.

    seen : hashes of the files it was trained on, where it names them.
    """

    recipe: Recipe
    slice_wise: bool
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    seen: frozenset[str] = frozenset()


def is_bundle(path: Path) -> bool:
    """Whether a path leads to a bundle, which is a folder; checkpoints are files."""
    return path.is_dir()


def harmonizer_facts(path: Path) -> HarmonizerFacts:
    """Raises UsageError for another kind of checkpoint, BundleError for a folder that is no sound bundle."""
    if not is_bundle(path):
        meta = _checkpoint_meta(path)
        return HarmonizerFacts(
            Recipe.from_dict(meta["recipe"]),
            meta["kind"] != "volume_cyclegan",
            tuple(meta.get("sources") or ()),
            (str(meta["target"]),),
            frozenset(meta.get("training_scans") or ()),
        )
    bundle = load_bundle(path)
    entries = [m for m in bundle.models if m.role == "harmonizer"]
    sources = dict.fromkeys(site for entry in entries for site in entry.sources)
    targets = dict.fromkeys(entry.target for entry in entries if entry.target)
    return HarmonizerFacts(
        Recipe.from_dict(dict(bundle.recipe)),
        len(entries[0].inputs[0].shape) == SLICE_RANK,
        tuple(sources),
        tuple(targets),
    )


def system_of(path: Path) -> str:
    """ "volume" or "slice": the system of a bundle's or checkpoint's harmonizer."""
    return "slice" if harmonizer_facts(path).slice_wise else "volume"


def recipe_of(path: Path) -> Recipe:
    """How a harmonizer's scans are brought to model space."""
    return harmonizer_facts(path).recipe


def unseen(cohort: Cohort, path: Path) -> Cohort:
    """The scans of those subjects of whom a harmonizer checkpoint was trained on no scan.

    Told by the hashes of the files, so that a subject's rescans go with the scan that was seen.
    Raises UsageError where nobody is left, for another kind of checkpoint, and for a bundle, which names no
    files.
    """
    if is_bundle(path):
        raise UsageError(
            f"{path.name} does not say which scans it was trained on; a checkpoint does.",
            "Give the checkpoint that it was made of, or leave --unseen out.",
        )
    trained_on = harmonizer_facts(path).seen
    seen = {s.subject for s in cohort.scans if sha256_file(s.path) in trained_on}
    left = cohort.of(set(cohort.subjects) - seen)
    if not left.scans:
        raise UsageError(
            f"{path.name} was trained on all {len(seen)} subjects of this cohort.",
            "Give a cohort with subjects that it has not seen.",
        )
    return left


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
    made = np.clip(applied(network.eval().to(run.device), volumes, run), 0, 1)
    return anchored(made, Recipe.from_dict(meta["recipe"])) if direction == "generator" else made


def _checkpoint_meta(path: Path) -> dict[str, Any]:
    meta = load_checkpoint(path)[1]
    if meta.get("kind") not in GENERATORS:
        raise UsageError(
            f"{path.name} is a checkpoint of kind {meta.get('kind')}, not a harmonizer.",
            "Give a checkpoint of hz-train cyclegan or hz-train canonical, or a bundle.",
        )
    return meta


class _TorchBackend:
    """A checkpoint's network as a runtime backend, in float32; torch is none of hz-run's engines."""

    name, provider, precision = "torch", "eager", "fp32"

    def __init__(self, path: Path, recipe: Recipe, device: str) -> None:
        network, meta = read_harmonizer(path, recipe)
        run = Run.start(Schedule(), device)
        self._network: nn.Module | None = network.to(run.device)
        self._run = run
        self.version, self.device, self.sha256 = str(torch.__version__), str(run.device), sha256_file(path)
        axes = recipe.grid_shape if meta["kind"] == "volume_cyclegan" else recipe.grid_shape[:2]
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("volume", ("N", 1, *axes), "float32"),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("harmonized", ("N", 1, *axes), "float32"),)

    @torch.no_grad()
    def run(self, batch: F32) -> dict[str, F32]:
        """(N, 1, D, H, W) or (N, 1, D, H) float32 to the same shape."""
        assert self._network is not None, "closed"
        fed = self._run.put(check_batch(batch, self.inputs[0])[:, 0])
        return check_outputs({"harmonized": self._network(fed).float().cpu().numpy()}, "torch")

    def close(self) -> None:
        """Let the network go."""
        self._network = None


def _in_torch(path: Path, recipe: Recipe, device: str) -> Harmonizer:
    """A checkpoint where hz-run has a bundle."""
    backend = _TorchBackend(path, recipe, device)
    facts = harmonizer_facts(path)
    entry = ModelEntry(
        role="harmonizer",
        file=path.name,
        sha256=backend.sha256,
        bytes=path.stat().st_size,
        precision=backend.precision,
        inputs=backend.inputs,
        outputs=backend.outputs,
        sources=facts.sources,
        target=facts.targets[0],
        parameters=0,
        parity={},
        provenance={},
    )
    return Harmonizer(backend, recipe, entry)
