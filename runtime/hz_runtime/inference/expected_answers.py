"""What a bundle's networks answer about its self-test's scan: written at export, held against engines later.

Two files of the bundle: the scan, `self-test.nii.gz`, and `self-test.json` with the answers of every network
file, of that file and no other (sha256), on onnxruntime's CPU with one thread. The manifest names both under
"self_test". Who runs which engine, and what else an installation must have, is `batch.self_test`'s.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.backends.registry import ENGINES, missing, open_backend
from hz_runtime.bundle.manifest import RUN_ROLES
from hz_runtime.errors import BackendError, BundleError
from hz_runtime.inference.slice_wise import of_volumes
from hz_runtime.io.json_text import OTHER_FORM
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import Recipe, to_model_space

if TYPE_CHECKING:
    from hz_runtime.backends.base import Backend
    from hz_runtime.bundle.store import Bundle

F32 = NDArray[np.float32]
SCAN, ANSWERS = "self-test.nii.gz", "self-test.json"
ENTRY = {"scan": SCAN, "answers": ANSWERS}  # of the manifest
VERSION = 1
GAMMAS = (1.0, 0.6)  # the scan as it is, and as another who looks otherwise: exponents of its intensities
VOXELS = 512  # of a harmonized volume that are kept
ABOVE = 0.02  # of a volume in model space: brain
LEAST_SPREAD = 1e-4  # of answers about inputs that differ so much, in their own unit


@dataclass(frozen=True)
class FileAnswers:
    """Of one network file.

    values : (inputs, n) float32: years or a probability, n = 1, or intensities at the voxels kept.
    tolerance : largest mean and 99.9th percentile of absolute differences ("mean", "p999"), or largest
    difference ("most").
    """

    file: str
    sha256: str
    values: F32
    tolerance: Mapping[str, float]

    def compare(self, found: F32, rows: Sequence[int]) -> tuple[bool, str]:
        """Whether answers about the inputs `rows` keep to the tolerance, and how far off they are."""
        off = np.abs(found.astype(np.float64) - self.values[list(rows)])
        size = {"mean": off.mean(), "p999": np.quantile(off, 0.999), "most": off.max()}
        words = [f"{key} {size[key]:.2g} off (at most {most:g})" for key, most in self.tolerance.items()]
        return all(size[key] <= most for key, most in self.tolerance.items()), ", ".join(words)


@dataclass(frozen=True)
class ExpectedAnswers:
    """All that self-test.json says.

    scan : bytes of a .nii.gz.  voxels : (n,) flat indices into a volume in model space.
    grid : (n,) float32, the scan there.  files : by name.
    """

    scan: bytes
    voxels: NDArray[np.int64]
    grid: F32
    files: Mapping[str, FileAnswers]

    def to_json(self) -> bytes:
        files = {
            name: {
                "sha256": one.sha256,
                "tolerance": dict(one.tolerance),
                "values": [[_digits(v) for v in row] for row in one.values.tolist()],
            }
            for name, one in self.files.items()
        }
        content = {
            "version": VERSION,
            "inputs": list(GAMMAS),
            "voxels": self.voxels.tolist(),
            "grid": [_digits(v) for v in self.grid.tolist()],
            "files": files,
        }
        return (json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n").encode("ascii")


def expected_answers(bundle: Bundle) -> ExpectedAnswers | None:
    """Those of a verified bundle; None where it holds none. Raises BundleError where they cannot be read."""
    named = bundle.raw.get("self_test")
    if named is None:
        return None
    if not isinstance(named, dict) or {named.get("scan"), named.get("answers")} - set(bundle.files):
        raise BundleError(f"{bundle.path.name}: its self-test names files that it does not list.", _AGAIN)
    try:
        content = json.loads(bundle.read_listed(str(named["answers"])))
        if content["version"] != VERSION or tuple(content["inputs"]) != GAMMAS:
            raise ValueError("of another version of hz")
        files = {
            str(name): FileAnswers(
                str(name),
                str(one["sha256"]),
                np.array(one["values"], np.float32).reshape(len(GAMMAS), -1),
                {str(key): float(most) for key, most in one["tolerance"].items()},
            )
            for name, one in content["files"].items()
        }
        voxels, grid = np.array(content["voxels"], np.int64), np.array(content["grid"], np.float32)
        if not (_fits(voxels, grid) and all(_comparable(one, voxels.size) for one in files.values())):
            raise ValueError("numbers that cannot be compared with answers")
    except OTHER_FORM as error:
        what = f"{bundle.path.name}: {named['answers']} cannot be read ({type(error).__name__}: {error})."
        raise BundleError(what[:300], _AGAIN) from None
    return ExpectedAnswers(bundle.read_listed(str(named["scan"])), voxels, grid, files)


def _fits(voxels: NDArray[np.int64], grid: F32) -> bool:
    return voxels.ndim == 1 and voxels.shape == grid.shape and voxels.size > 0 and voxels.min() >= 0


def _comparable(answers: FileAnswers, voxels: int) -> bool:
    """Whether answers of a network can be off: a tolerance without bounds would pass any."""
    known = set(answers.tolerance) in ({"most"}, {"mean", "p999"})
    finite = all(0 <= most < np.inf for most in answers.tolerance.values())
    return known and finite and answers.values.shape[1] in (1, voxels)


def make_answers(
    scan: bytes,
    recipe: Recipe,
    models: Iterable[tuple[Mapping[str, Any], bytes]],
    tolerances: Mapping[str, Mapping[str, float]],
) -> ExpectedAnswers:
    """Ask every network file that a run may use, on onnxruntime's CPU with one thread.

    A file that it does not run, as those of bfloat16, is asked on another CPU engine; where none runs it, no
    answers of it are known.

    models : manifest entries with role, file, precision and sha256, and the files' bytes.
    tolerances : by precision, "mean" and "p999" of intensities, "years" and "probability".
    Raises BackendError where no CPU engine is installed, or one fails.
    """
    volume = model_input(scan, recipe)
    inside = np.flatnonzero(volume > ABOVE)
    voxels = inside[np.linspace(0, len(inside) - 1, min(VOXELS, len(inside))).round().astype(np.int64)]
    inputs, files = variants(volume), {}
    for entry, data in models:
        if entry["role"] not in RUN_ROLES:
            continue
        backend = _opened(data, entry["file"])
        if backend is None:
            continue
        try:
            values = ask(backend, inputs, voxels, recipe)
        finally:
            backend.close()
        allowed = tolerances[entry["precision"]]
        kept = {"harmonizer": ("mean", "p999"), "age": ("years",), "diagnosis": ("probability",)}[
            entry["role"]
        ]
        tolerance = {key if len(kept) > 1 else "most": allowed[key] for key in kept}
        files[entry["file"]] = FileAnswers(entry["file"], entry["sha256"], values, tolerance)
    return ExpectedAnswers(scan, voxels, volume.reshape(-1)[voxels], files)


def _opened(data: bytes, file: str) -> Backend | None:
    engines = [engine.name for engine in ENGINES if engine.device == "cpu" and not missing(engine)[0]]
    if not engines:
        raise BackendError("No engine for a CPU is installed.", "pip install 'hz-mri[cpu]'")
    for name in sorted(engines, key=lambda name: name != "onnxruntime-cpu"):
        with suppress(BackendError):
            return open_backend(name, data, device="cpu", threads=1, where=file)
    return None


def model_input(scan: bytes, recipe: Recipe) -> F32:
    """The scan of a self-test in model space, (D, H, W) float32 in [0, 1]."""
    with tempfile.TemporaryDirectory(prefix="hz-self-test-") as folder:
        path = Path(folder) / SCAN
        path.write_bytes(scan)
        return to_model_space(read_volume(path), recipe).grid


def variants(volume: F32) -> F32:
    """(inputs, D, H, W) float32: what the networks are asked about."""
    return np.stack([np.asarray(volume**gamma, np.float32) for gamma in GAMMAS])


def ask(backend: Backend, inputs: F32, voxels: NDArray[np.int64], recipe: Recipe) -> F32:
    """A network's answers about each of `inputs`, one at a time: (inputs, n) float32, as in `FileAnswers`."""
    answer = of_volumes(backend, recipe.middle_slices)
    rows = []
    for volume in inputs:
        found = np.asarray(answer(volume[None]), np.float32).reshape(-1)
        rows.append(found if found.size == 1 else np.clip(found[voxels], 0, 1))
    return np.stack(rows)


def same_for_everybody(values: F32) -> bool:
    """Whether a network gives one answer to inputs that differ: (inputs, n) as in `FileAnswers`."""
    return bool(np.abs(values - values[:1]).mean(axis=1).max() < LEAST_SPREAD)


def _digits(value: float) -> float:
    return float(f"{value:.7g}")


_AGAIN = "Make it again:  hz-bundle self-test BUNDLE"
