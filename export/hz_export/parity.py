"""Parity: how far a file strays from the PyTorch network it was exported from, on real volumes.

The reference is the checkpoint's network in torch, float32, on the CPU. The candidate is a finished file,
opened from its very bytes by every engine at hand; evidence carries the file's sha256, because it speaks
of no other file. Differences are stated in intensity units (volumes are in [0, 1]) for a harmonizer, over
the whole grid and inside the brain, and in years for an age network. They are kept volume by volume
(`differences`), so that thresholds can be judged again without running anything (`rejudge`).

What this does not know: an engine on a CPU need not do float16 arithmetic. onnxruntime computes a float16
file in float32 and rounds to float16 only where the file itself has a Cast; OpenVINO computes it in float32
throughout. `onnx_files` therefore holds such a file to its tolerance once more, with every rounding written
out. Evidence for a GPU's own units needs an engine on a GPU; the provider says which it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from hz_export.differences import (
    TOLERANCES,
    UNITS,
    Tolerance,
    checks,
    differences,
    measured,
    tolerance_values,
)
from hz_export.fast_evidence import judged, tolerance_kind
from hz_runtime.backends.base import Backend, describe
from hz_runtime.backends.registry import engines_named, installed, open_backend
from hz_runtime.errors import BackendError, HzError, UsageError
from hz_runtime.inference.slice_wise import of_volumes, seams, slice_wise
from hz_runtime.io.atomic import sha256_bytes, sha256_file
from hz_runtime.io.scan_files import find_scans
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.intensity import RULES
from hz_runtime.model_space.recipe import Recipe, to_model_space
from hz_runtime.preparation.template import mni152_volume

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "TOLERANCES",
    "ParityCheck",
    "Tolerance",
    "Volumes",
    "brains",
    "differences",
    "reference",
    "rejudge",
]

F32 = NDArray[np.float32]
# A torch network, or any function from (n, D, H, W) float32 to (n, D, H, W) or to (n,) years.
Network: TypeAlias = Union["nn.Module", Callable[[F32], F32]]

BRAIN_ABOVE = 0.02  # of a prepared volume in [0, 1], zero outside the brain
MOST_VOLUMES = 8
TEMPLATE_VIEWS = 4


@dataclass(frozen=True)
class Volumes:
    """What parity is measured on.

    grids : (n, D, H, W) float32 in [0, 1], prepared by the recipe.  sha256 : of the files they came from.
    source : in words, for the evidence.
    """

    grids: F32
    sha256: tuple[str, ...]
    source: str

    def to_dict(self, n: int) -> dict[str, Any]:
        """As evidence gives them.  n : how many were measured."""
        return {"n": n, "sha256": list(self.sha256), "source": self.source}


@dataclass(frozen=True)
class ParityCheck:
    """Measures files against one reference network.

    network : torch, evaluation mode, or a function.  inputs : (n, D, H, W) float32 that it is given.
    brain : (n, D, H, W) bool.  volumes : what `inputs` came from.  years : for a harmonizer, the age network
    behind it, so that its error is also known in years.  engines : what `measure` opens files with; none
    for all installed.  name : of the reference, for the evidence of one that is not a torch network.
    role : of the network.  middle_slices : of the recipe, for slice-wise predictors.
    """

    network: Network
    inputs: F32
    brain: NDArray[np.bool_]
    volumes: Volumes
    years: Network | None = None
    engines: tuple[str, ...] = ()
    name: str = ""
    role: str = "harmonizer"
    middle_slices: int = 0
    expected: F32 = field(init=False)
    expected_years: F32 | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "expected", reference(self.network, self.inputs))
        if self.years is not None:
            object.__setattr__(self, "expected_years", reference(self.years, self.expected))

    def measure(self, model: bytes, kind: str, tolerance: Tolerance, where: str) -> dict[str, Any]:
        """Parity of one file on every engine, for its manifest entry.

        model : the file's bytes.  kind : a key of TOLERANCES.  where : the file's name, for messages.
        Raises HzError, with what was found, where an engine fails or strays past the tolerance. What it does
        where it is asked to compute in bfloat16 is measured where this machine can; that it strays too far
        for `fast` then, or fails, is no fault of the file.
        """
        rows = []
        for engine in self.engines or tuple(name for name, _ in installed()):
            rows.append(self._measure(model, engine, kind, where))
            rows += self._hinted(model, engine, kind, where)
        if not rows:
            raise HzError("No engine is installed to measure parity with.", "pip install 'hz-mri[cpu]'")
        for row in rows:
            if "hint" not in row["backend"]:
                refuse_past(row, tolerance, f"{where} on {ran(row)}")
        return self.evidence(sha256_bytes(model), kind, tolerance, rows)

    def evidence(
        self, sha256: str, kind: str, tolerance: Tolerance, rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Evidence about the file with this sha256 from rows that `row` made."""
        return {
            "sha256": sha256,
            "reference": self.name or torch_reference(),
            "kind": kind,
            "volumes": self.volumes.to_dict(len(self.inputs)),
            "tolerance": tolerance_values(rows[0], tolerance) if rows else {},
            "measured": list(rows),
        }

    def row(self, backend: Backend, kind: str) -> dict[str, Any]:
        """What an opened engine answers to the very same volumes, one at a time, against the reference; for a
        slice-wise harmonizer also the seams that it leaves. On a CPU with `fast_evidence.judged`'s verdict.

        kind : of the file that it runs, a key of TOLERANCES.
        Raises BackendError where the engine fails or answers with values that are not finite.
        """
        answer = of_volumes(backend, self.middle_slices)
        found = np.concatenate([answer(volume[None]) for volume in self.inputs])
        row = {"backend": describe(backend), **self.against(found)}
        if slice_wise(backend) and found.ndim == self.inputs.ndim:
            row["seams"] = self._seams(found)
        return judged(row, kind)

    def _seams(self, found: F32) -> dict[str, float]:
        """`slices.seams` of harmonized volumes: the mean of all, and the worst pair of any."""
        each = [seams(*three) for three in zip(self.inputs, found, self.brain, strict=True)]
        return {
            "overall": float(np.mean([one.overall for one in each])),
            "worst": max(one.worst for one in each),
        }

    def against(self, found: F32) -> dict[str, Any]:
        """`differences.measured` of answers that somebody else has, of any shape with the same values."""
        answers = found.reshape(self.expected.shape)
        ages = None
        if self.years is not None and self.expected_years is not None:
            ages = (reference(self.years, answers), self.expected_years)
        return measured(answers, self.expected, self.brain, ages, UNITS.get(self.role, "years"))

    def _hinted(self, model: bytes, engine: str, kind: str, where: str) -> Iterator[dict[str, Any]]:
        """A row for every other type that the engine can be asked to compute the file's float32 in."""
        if not takes_hints(kind):
            return
        hints = next((one.hints for one in engines_named(engine) if not one.built), ())
        for hint in hints[1:]:
            with suppress(BackendError):  # this processor has no such type
                yield self._opened_row(model, engine, kind, where, hint)

    def _opened_row(self, model: bytes, engine: str, kind: str, where: str, hint: str) -> dict[str, Any]:
        backend = open_backend(engine, model, where=where, hint=hint)
        try:
            return self.row(backend, kind)
        finally:
            backend.close()

    def _measure(self, model: bytes, engine: str, kind: str, where: str) -> dict[str, Any]:
        try:
            return self._opened_row(model, engine, kind, where, "fp32")
        except BackendError as error:
            raise HzError(f"parity of {where}: {error.message}", "Not published. " + error.remedy) from error


def takes_hints(kind: str) -> bool:
    """Whether a file of `kind` holds float32 that an engine may be asked to compute in another type."""
    return kind.startswith("fp32") or kind == "int8"


def ran(row: Mapping[str, Any]) -> str:
    """Which engine a row is of, in words."""
    backend = row["backend"]
    asked = f" in {backend['hint']}" if "hint" in backend else ""
    return f"{backend['name']} {backend['provider']}{asked}"


def torch_reference() -> str:
    """What the reference is, as evidence states it."""
    import torch

    return f"torch {torch.__version__} float32, CPU"


def reference(network: Network, volumes: F32) -> F32:
    """Its answers, (n, D, H, W) volumes or (n,) years; torch in float32 on the CPU, one at a time."""
    torch = sys.modules.get("torch")  # whoever holds a torch network has imported it
    if torch is None or not isinstance(network, torch.nn.Module):
        answers: F32 = np.asarray(network(volumes), np.float32)
        return answers
    module: nn.Module = network.eval()
    with torch.no_grad():
        made = [module(torch.from_numpy(np.ascontiguousarray(v))[None, None]).numpy() for v in volumes]
    joined: F32 = np.concatenate(made)
    return joined.reshape(len(volumes), *volumes.shape[1:]) if joined.ndim == 5 else joined.reshape(-1)


def rejudge(
    recorded: Mapping[str, Any], changes: Mapping[str, float] | None = None
) -> Iterator[tuple[str, Mapping[str, Any], str, tuple[str, ...]]]:
    """Judge evidence again, from its numbers alone.

    recorded : what `hz-bench parity --json` wrote, or a bundle.json.  changes : fields of Tolerance to
    replace in each file's own.  Gives (file, row, its kind, what is past its threshold) for every row.
    Raises UsageError where this is no such evidence, or a threshold's number was not kept.
    """
    rows = 0
    try:
        for model in recorded["models"]:
            evidence = model["parity"]
            kind = evidence.get("kind", "fp32")
            if evidence["measured"] and evidence["sha256"] != model["sha256"]:
                raise UsageError(
                    f"the evidence for {model['file']} is of other bytes ({evidence['sha256'][:12]}...).",
                    "Measure again:  hz-bench parity BUNDLE",
                )
            for row in evidence["measured"]:
                rows += 1
                of_row = tolerance_kind(row, kind)
                tolerance = replace(TOLERANCES[of_row], **(changes or {}))
                yield model["file"], row, of_row, tuple(str(c) for c in checks(row, tolerance) if c.past)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"this is not evidence of parity ({type(error).__name__}: {error}).",
            "Give what hz-bench parity --json wrote, or a bundle.json.",
        ) from None
    if not rows:
        raise UsageError("this evidence holds no measurement.", "Measure:  hz-bench parity BUNDLE")


def brains(grids: F32) -> NDArray[np.bool_]:
    """Brain voxels of prepared volumes."""
    inside: NDArray[np.bool_] = grids > BRAIN_ABOVE
    return inside


def scan_volumes(
    paths: Sequence[Path], recipe: Recipe, most: int = MOST_VOLUMES, without: Collection[str] = ()
) -> Volumes:
    """Prepare up to `most` scans, evenly spread over `paths` (files, and folders searched below).

    without : sha256 of scans that are left out: those that a precision plan was fitted to prove nothing.
    Raises UsageError where there are none, or none is left, ScanError naming a scan that cannot be prepared.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(find_scans(path)) if path.is_dir() else [path]
    if not files:
        raise UsageError(
            "no scans (.nii, .nii.gz, .mgz) where --scans points.", "Name a folder that holds some."
        )
    given = len(files)
    if without:
        files = [path for path in files if not path.is_file() or sha256_file(path) not in without]
    left_out = given - len(files)
    if not files:
        raise UsageError(
            f"all {given} scans of --scans are those that the precision plan was made on: no evidence.",
            "Name others, or calibrate on fewer (hz-calibrate --count).",
        )
    picked = [
        files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int))
    ]
    loaded = [read_volume(path) for path in picked]
    grids = np.stack([to_model_space(volume, recipe).grid for volume in loaded])
    source = f"{len(picked)} of {given} scans given by --scans"
    if left_out:
        source += f", {left_out} left out that the precision plan was made on"
    return Volumes(grids, tuple(v.sha256 for v in loaded), source)


def calibrated_on(models: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """sha256 of the scans that the plans of these manifest entries were made on."""
    found: set[str] = set()
    for model in models:
        found.update(model.get("plan", {}).get("calibration", {}).get("sha256", []))
    return frozenset(found)


def template_volumes(recipe: Recipe, views: int = TEMPLATE_VIEWS) -> Volumes:
    """The MNI152 T1 brain that ships with hz, as it is and through simulated scanners (seeded)."""
    from hz_train.augment import Augmentation, scanner

    volume = mni152_volume()
    head = to_model_space(volume, recipe).grid
    seen = [scanner(head, np.random.default_rng([7, k]), Augmentation.strong()) for k in range(1, views)]
    if recipe.intensity not in RULES:  # a level is what the rule says, and not the brightest voxel's share
        level = float(np.median(head[head > 0]))
        seen = [np.clip(one * (level / max(float(np.median(one[one > 0])), 1e-6)), 0, 1) for one in seen]
    source = f"MNI152 T1 brain that ships with hz, as it is and through {views - 1} simulated scanners"
    return Volumes(np.stack([head, *seen]), (volume.sha256,), source)


def no_evidence() -> dict[str, Any]:
    """What a manifest says where parity was switched off."""
    return {"measured": [], "note": "not measured (--no-parity)"}


def refuse_past(row: Mapping[str, Any], tolerance: Tolerance, where: str) -> None:
    """Raise HzError, naming what is past which limit, for a row of `ParityCheck.row` or `.against`."""
    past = [str(check) for check in checks(row, tolerance) if check.past]
    if past:
        raise HzError(
            f"parity of {where}: {'; '.join(past)}.",
            "Not published. Export without --fp16 or --half-weights, or state a wider tolerance on purpose.",
        )
