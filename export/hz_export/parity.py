"""Parity: how far an ONNX file strays from the PyTorch network it was exported from, on real volumes.

The reference is the checkpoint's network in torch, float32, on the CPU. The candidate is a finished file,
opened from its very bytes by every engine at hand; evidence carries the file's sha256, because it speaks
of no other file. Differences are stated in intensity units (volumes are in [0, 1]) for a harmonizer, over
the whole grid and inside the brain, and in years for an age network.

What this does not know: an engine on a CPU need not do float16 arithmetic. onnxruntime rounds tensors to
float16 between operations and computes inside them in float32; OpenVINO computes float16 graphs in float32
throughout. Evidence for a GPU's float16 units needs onnxruntime-gpu on a GPU; the provider says which it was.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hz_runtime.backends import describe, installed, open_backend
from hz_runtime.errors import BackendError, HzError, UsageError
from hz_runtime.files import sha256_bytes
from hz_runtime.recipe import Recipe, prepare
from hz_runtime.volume import is_scan_name, read_volume

F32 = NDArray[np.float32]

BRAIN_ABOVE = 0.02  # of a prepared volume in [0, 1], zero outside the brain
MOST_VOLUMES = 8
TEMPLATE_VIEWS = 4
TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True)
class Tolerance:
    """How far a file may stray before it is not published.

    mean, p999 : absolute difference inside the brain, mean and 99.9th percentile, intensity units.
    years : largest difference of any predicted age.
    """

    mean: float
    p999: float
    years: float


# By how a file computes and stores. Rounding a weight to float16 moves it by at most 1 part in 2048.
TOLERANCES = {
    "fp32": Tolerance(mean=1e-4, p999=1e-3, years=0.05),
    "fp32, half weights": Tolerance(mean=1e-3, p999=1e-2, years=0.1),
    "fp16": Tolerance(mean=2e-3, p999=2e-2, years=0.25),
}


@dataclass(frozen=True)
class Volumes:
    """What parity is measured on.

    grids : (n, D, H, W) float32 in [0, 1], prepared by the recipe.  sha256 : of the files they came from.
    source : in words, for the evidence.
    """

    grids: F32
    sha256: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Judge:
    """Measures files against one reference network.

    network : torch, evaluation mode.  inputs : (n, D, H, W) float32 that it is given.  brain : (n, D, H, W)
    bool.  volumes : what `inputs` came from.  years : for a harmonizer, the age network behind it, so that
    its error is also known in years.
    """

    network: nn.Module
    inputs: F32
    brain: NDArray[np.bool_]
    volumes: Volumes
    years: nn.Module | None = None
    engines: tuple[str, ...] = ()
    expected: F32 = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "expected", reference(self.network, self.inputs))

    def evidence(self, model: bytes, kind: str, tolerance: Tolerance, where: str) -> dict[str, Any]:
        """Parity of one file on every engine, for its manifest entry.

        model : the file's bytes.  kind : a key of TOLERANCES.  where : the file's name, for messages.
        Raises HzError, with what was found, where an engine fails or strays past the tolerance.
        """
        measured = []
        for engine in self.engines or tuple(name for name, _ in installed()):
            measured.append(self._measure(model, engine, where))
        if not measured:
            raise HzError("No engine is installed to measure parity with.", "pip install 'hz-mri[cpu]'")
        for row in measured:
            _refuse_past(row, tolerance, f"{where} on {row['backend']['name']} {row['backend']['provider']}")
        return {
            "sha256": sha256_bytes(model),
            "reference": f"torch {torch.__version__} float32, CPU",
            "kind": kind,
            "volumes": {
                "n": len(self.inputs),
                "sha256": list(self.volumes.sha256),
                "source": self.volumes.source,
            },
            "tolerance": {k: v for k, v in tolerance.__dict__.items() if k in _judged(measured[0])},
            "measured": measured,
        }

    def _measure(self, model: bytes, engine: str, where: str) -> dict[str, Any]:
        try:
            backend = open_backend(engine, model, where=where)
            try:
                parts = [next(iter(backend.run(v[None, None]).values())) for v in self.inputs]
                ran = describe(backend)
            finally:
                backend.close()
        except BackendError as error:
            raise HzError(f"parity of {where}: {error.message}", "Not published. " + error.remedy) from error
        found = np.concatenate(parts).reshape(self.expected.shape)
        return {"backend": ran, **self._differences(found)}

    def _differences(self, found: F32) -> dict[str, Any]:
        if self.expected.ndim == 1:
            return {"years": differences(found, self.expected)}
        rows: dict[str, Any] = {
            "brain": {**differences(found[self.brain], self.expected[self.brain])},
            "overall": {**differences(found, self.expected)},
        }
        if self.years is not None:
            rows["years"] = differences(reference(self.years, found), reference(self.years, self.expected))
        return rows


def differences(found: F32, expected: F32) -> dict[str, float | int | None]:
    """max, p99.9 and mean absolute difference, PSNR in dB for a range of 1 (None where equal), and how many
    values were not finite (those are left out of the rest)."""
    finite = np.isfinite(found)
    gap = np.abs(found.astype(np.float64) - expected)[finite]
    mse = float(np.square(gap).mean()) if gap.size else float("inf")
    return {
        "max": float(gap.max(initial=0.0)),
        "p999": float(np.percentile(gap, 99.9)) if gap.size else 0.0,
        "mean": float(gap.mean()) if gap.size else 0.0,
        "psnr_db": round(-10 * float(np.log10(mse)), 2) if 0 < mse < float("inf") else None,
        "nonfinite": int(found.size - np.count_nonzero(finite)),
    }


@torch.no_grad()
def reference(network: nn.Module, volumes: F32) -> F32:
    """Torch float32 on the CPU, one volume at a time: (n, D, H, W) volumes, or (n,) years."""
    network = network.eval()
    made = [network(torch.from_numpy(np.ascontiguousarray(v))[None, None]).numpy() for v in volumes]
    joined: F32 = np.concatenate(made)
    return joined.reshape(len(volumes), *volumes.shape[1:]) if joined.ndim == 5 else joined.reshape(-1)


def brains(grids: F32) -> NDArray[np.bool_]:
    """Brain voxels of prepared volumes."""
    inside: NDArray[np.bool_] = grids > BRAIN_ABOVE
    return inside


def scan_volumes(paths: Sequence[Path], recipe: Recipe, most: int = MOST_VOLUMES) -> Volumes:
    """Prepare up to `most` scans, evenly spread over `paths` (files, and folders searched below).

    Raises UsageError where there are none, ScanError naming a scan that cannot be prepared.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(p for p in path.rglob("*") if is_scan_name(p)) if path.is_dir() else [path]
    if not files:
        raise UsageError(
            "no scans (.nii, .nii.gz, .mgz) where --scans points.", "Name a folder that holds some."
        )
    picked = [
        files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int))
    ]
    loaded = [read_volume(path) for path in picked]
    grids = np.stack([prepare(volume, recipe).grid for volume in loaded])
    return Volumes(
        grids, tuple(v.sha256 for v in loaded), f"{len(picked)} of {len(files)} scans given by --scans"
    )


def template_volumes(recipe: Recipe, views: int = TEMPLATE_VIEWS) -> Volumes:
    """The MNI152 T1 brain of the installed nilearn, as it is and through simulated scanners (seeded).

    Raises UsageError where nilearn is not installed.
    """
    from hz_train.augment import Augmentation, scanner

    package = importlib.util.find_spec("nilearn")
    path = (
        Path(package.submodule_search_locations[0]) / TEMPLATE
        if package and package.submodule_search_locations
        else None
    )
    if path is None or not path.is_file():
        raise UsageError(
            "parity needs real volumes: there are no --scans, and no nilearn whose MNI152 brain would serve.",
            "Give some (--scans FOLDER), or pip install 'hz-mri[export]'.",
        )
    volume = read_volume(path)
    head = prepare(volume, recipe).grid
    seen = [scanner(head, np.random.default_rng([7, k]), Augmentation.strong()) for k in range(1, views)]
    source = f"MNI152 T1 brain shipped in nilearn, as it is and through {views - 1} simulated scanners"
    return Volumes(np.stack([head, *seen]), (volume.sha256,), source)


def no_evidence() -> dict[str, Any]:
    """What a manifest says where parity was switched off."""
    return {"measured": [], "note": "not measured (--no-parity)"}


def _judged(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (("mean", "p999") if "brain" in row else ()) + (("years",) if "years" in row else ())


def _refuse_past(row: Mapping[str, Any], tolerance: Tolerance, where: str) -> None:
    found = []
    if "brain" in row:
        found += [
            (row["brain"]["mean"], tolerance.mean, "mean difference in the brain"),
            (row["brain"]["p999"], tolerance.p999, "99.9th percentile in the brain"),
            (row["overall"]["nonfinite"], 0, "non-finite values"),
        ]
    if "years" in row:
        found += [
            (row["years"]["max"], tolerance.years, "largest difference in years"),
            (row["years"]["nonfinite"], 0, "non-finite ages"),
        ]
    past = [f"{what} {value:.3g} (at most {limit:g})" for value, limit, what in found if not value <= limit]
    if past:
        raise HzError(
            f"parity of {where}: {'; '.join(past)}.",
            "Not published. Export without --fp16 or --half-weights, or state a wider tolerance on purpose.",
        )
