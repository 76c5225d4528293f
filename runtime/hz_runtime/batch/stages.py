"""What happens to one scan: read, prepare, infer, write. Each step knows nothing of threads or queues.

A step takes a Job, adds to it, and raises when the scan cannot go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hz_runtime.batch.failures import blames_the_scan
from hz_runtime.batch.inputs import InputScan
from hz_runtime.errors import HzError
from hz_runtime.io.atomic import atomic_write_bytes, sha256_bytes, sha256_file
from hz_runtime.io.volume import Geometry, ReadLimits, Volume, read_volume, write_volume
from hz_runtime.model_space import outliers
from hz_runtime.model_space.guided_filter import native_harmonized
from hz_runtime.model_space.recipe import ModelInput, Recipe, to_model_space
from hz_runtime.results.record import Record, fingerprint, intact, read_record
from hz_runtime.results.scan_result import DONE_BEFORE, ScanResult
from hz_runtime.results.versions import hz_version

if TYPE_CHECKING:
    from hz_runtime.backends.base import Backend
    from hz_runtime.bundle.store import Bundle
    from hz_runtime.inference.predictors import AgePredictor, DiagnosisPredictor, Harmonizer
    from hz_runtime.preparation.preparer import Preparer

F32 = NDArray[np.float32]
Space = Literal["native", "model", "both"]


def suffix(space: Literal["native", "model"], recipe: Recipe) -> str:
    """What follows a scan's name in an output's, e.g. "_space-MNI152_res-64_desc-harmonized_T1w.nii.gz".

    The resolution is the grid's: 64 for 64 x 64 x 64, 184x220x184 where the axes differ.
    """
    if space == "native":
        return "_desc-harmonized_T1w.nii.gz"
    sizes = list(map(str, recipe.grid_shape))
    res = sizes[0] if len(set(sizes)) == 1 else "x".join(sizes)
    return f"_space-{recipe.template}_res-{res}_desc-harmonized_T1w.nii.gz"


@dataclass(eq=False)
class Job:
    """One scan on its way. Big arrays are dropped as soon as no later step needs them."""

    index: int
    scan: InputScan
    age: float | None = None
    volume: Volume | None = None
    prepared: ModelInput | None = None
    harmonized: F32 | None = None  # (64, 64, 64) in [0, 1]
    age_raw: float | None = None
    age_corrected: float | None = None
    age_interval: tuple[float, float] | None = None  # around the age shown
    diagnosis_probability: float | None = None
    preparation: dict[str, Any] | None = None  # of a raw head: what its sidecar says about it
    model_grid: Geometry | None = None  # of a raw head: where the network's grid lies in the template's world
    engine: dict[str, str] | None = None  # what ran its network; a run may change engines on its way
    voxels: int = 0  # what the memory bound counts it as while it holds its volume
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def gates(self) -> tuple[dict[str, Any], ...]:
        """Verdicts of the gates that it passed."""
        return tuple(self.preparation["gates"]) if self.preparation else ()

    def drop(self) -> None:
        """Let go of everything large."""
        self.volume = self.prepared = self.harmonized = None


@dataclass(frozen=True)
class Stages:
    """The four steps over one bundle and one output folder. Safe to call from several threads.

    preparer : takes raw heads to brains; None for scans that are skull-stripped already.
    """

    bundle: Bundle
    recipe: Recipe
    harmonizer: Harmonizer
    predictor: AgePredictor | None
    out: Path
    space: Space
    dtype: Literal["int16", "float32"]
    figures: bool
    overwrite: bool
    options: Mapping[str, Any]
    batch: int
    limits: ReadLimits | None = None
    diagnosis: DiagnosisPredictor | None = None
    preparer: Preparer | None = None

    @property
    def spaces(self) -> tuple[Literal["native", "model"], ...]:
        return ("native", "model") if self.space == "both" else (self.space,)

    def outputs(self, scan: InputScan) -> tuple[str, ...]:
        """Names of the volumes a scan gets, the one with the commit record first."""
        return tuple(scan.name + suffix(s, self.recipe) for s in self.spaces)

    def read(self, job: Job) -> ScanResult | None:
        """Read the scan into `job`; or the result of an earlier run, when that is complete and fits."""
        path = job.scan.path
        job.scan.check()
        if not self.overwrite and (before := self._done_before(job)):
            return before
        job.volume = read_volume(path, self.limits) if self.limits else read_volume(path)
        job.voxels = int(job.volume.data.size)
        return None

    def _done_before(self, job: Job) -> ScanResult | None:
        scan = job.scan
        record = read_record(self.out / _sidecar(self.outputs(scan)[0]))
        if (
            record is None
            or record.bundle != self.bundle.id
            or record.fingerprint != fingerprint(self.options)
            or (self.figures and record.figure is None)
            or record.input_sha256 != sha256_file(scan.path)
            or not set(self.outputs(scan)) <= set(record.outputs)
            or not intact(self.out, record)
        ):
            return None
        return ScanResult(
            input=scan.label,
            name=scan.name,
            status="skipped",
            reason="; ".join([DONE_BEFORE + self._by_another(record.engine), *record.flags]),
            outputs=tuple(n for n in self._listed(scan) if n in record.outputs or n.endswith(".json")),
            figure=record.figure,
            age_raw=record.age_raw,
            age_corrected=record.age_corrected,
            diagnosis_probability=record.diagnosis_probability,
            age=job.age,
            flags=record.flags,
            sha256=record.input_sha256,
            recorded=record.status,
            gates=record.gates,
            age_interval=record.age_interval,
        )

    def _by_another(self, engine: Mapping[str, str] | None) -> str:
        """Said of an earlier result where this run's engine would have rounded it otherwise."""
        if engine in (None, _engine(self.harmonizer.backend)):
            return ""
        return f", by another engine ({', '.join(map(str, engine.values()))})"

    def _listed(self, scan: InputScan) -> list[str]:
        return [name for volume in self.outputs(scan) for name in (volume, _sidecar(volume))]

    def prepare(self, job: Job) -> None:
        """Bring the scan onto the network's grid; a raw head by way of the template's space."""
        assert job.volume is not None
        if self.preparer is None:
            prepared = to_model_space(job.volume, self.recipe, self.bundle.statistics)
        else:
            prepared = self._through_template(job, job.volume, self.preparer)
        reference = self.bundle.cohort.get("reference")
        if reference:  # bundles of before outlier scores have none
            found = outliers.score(prepared.features, prepared.grid, reference)
            prepared = replace(prepared, flags=(*prepared.flags, *found.reasons))
        job.prepared = prepared

    def _through_template(self, job: Job, volume: Volume, preparer: Preparer) -> ModelInput:
        from hz_runtime.preparation.preparer import preparation_metadata, step_seconds

        head = preparer(volume)
        job.preparation = preparation_metadata(preparer, head)
        job.seconds.update(step_seconds(head))
        # From here on the scan is its brain. Zero means outside, so that a voxel inside that measured nothing
        # must not have it.
        np.maximum(head.brain, np.finfo(np.float32).tiny, out=head.brain, where=head.mask)
        job.volume = replace(volume, data=head.brain)
        prepared = preparer.onto_grid(head, self.recipe, self.bundle.statistics)
        job.model_grid = Geometry.from_affine(
            prepared.grid.shape, prepared.grid_affine, code=preparer.geometry.sform_code
        )
        return replace(prepared, grid_affine=np.linalg.inv(head.pose) @ prepared.grid_affine)

    def withdraw(self, scan: InputScan, error: BaseException) -> None:
        """Remove what an earlier run made of a scan that now fails for its own sake: no result means none.

        A share that is gone or a full disk says nothing of the scan, and takes nothing away.
        """
        if not blames_the_scan(error) or not scan.path.is_file():
            return
        for name in (*reversed(self._listed(scan)), f"figures/{scan.name}.json"):
            with suppress(OSError):
                (self.out / name).unlink()

    def infer(self, jobs: Sequence[Job]) -> None:
        """Run the networks on up to `batch` scans.

        Always in batches of one size, filled up with zeros: engines pick their arithmetic by shape, so
        that a scan's result would else depend on which others happened to be waiting. (Slice-wise networks
        do the same with a scan's slices, see `slices`.)
        """
        batch = np.zeros((max(self.batch, len(jobs)), *self.recipe.grid_shape), np.float32)  # (N, D, H, W)
        for row, job in zip(batch, jobs, strict=False):
            assert job.prepared is not None
            row[...] = job.prepared.grid
        harmonized = np.asarray(self.harmonizer(batch), np.float32)
        engine = _engine(self.harmonizer.backend)
        ages = self.predictor(harmonized) if self.predictor else None
        probable = self.diagnosis(harmonized) if self.diagnosis else None
        for n, job in enumerate(jobs):
            if not np.isfinite(harmonized[n]).all():
                raise HzError(
                    "the network gave non-finite values for this scan.", "Try --backend onnxruntime."
                )
            job.harmonized = np.clip(harmonized[n], 0.0, 1.0)
            job.engine = engine
            if ages is not None:
                job.age_raw = _rounded(ages.raw, n)
                corrected = self.predictor is not None and self.predictor.bias is not None
                job.age_corrected = _rounded(ages.corrected, n) if corrected else None
                if ages.interval is not None and np.isfinite(ages.interval[n]).all():
                    low, high = np.round(ages.interval[n], 4).tolist()
                    job.age_interval = (low, high)
            job.diagnosis_probability = _rounded(probable, n)

    def write(self, job: Job) -> ScanResult:
        """Write the volumes, the figure and last the commit record; on failure nothing stays behind."""
        written: list[str] = []
        record_name = _sidecar(self.outputs(job.scan)[0])
        with suppress(FileNotFoundError):
            (self.out / record_name).unlink()  # from here on an earlier result is no longer claimed
        try:
            return self._write(job, written)
        except BaseException:
            for name in (*written, record_name):
                with suppress(OSError):
                    (self.out / name).unlink()
            raise

    def _write(self, job: Job, written: list[str]) -> ScanResult:
        scan, volume, prepared, harmonized = job.scan, job.volume, job.prepared, job.harmonized
        assert volume is not None
        assert prepared is not None
        assert harmonized is not None
        native = native_harmonized(volume, prepared, harmonized) if "native" in self.spaces else None
        figure = None
        if self.figures:
            from hz_runtime.report import figure_data

            figure = f"figures/{scan.name}.json"
            drawn = figure_data(volume, prepared, native, harmonized).to_bytes()
        geometry, sha256 = volume.geometry, volume.sha256
        job.volume = None  # a big scan's voxels are not needed while it is compressed
        grids: dict[str, tuple[F32, Geometry]] = {
            "model": (
                harmonized,
                job.model_grid or Geometry.from_affine(harmonized.shape, prepared.grid_affine),
            ),
        }
        if native is not None:
            grids["native"] = (native, geometry)

        outputs: dict[str, dict[str, Any]] = {}
        for space in self.spaces:
            name = scan.name + suffix(space, self.recipe)
            data, grid = grids[space]
            written.append(name)
            digest = write_volume(self.out / name, data, grid, dtype=self.dtype)
            outputs[name] = {"bytes": (self.out / name).stat().st_size, "sha256": digest}
        if figure:
            written.append(figure)
            (self.out / "figures").mkdir(exist_ok=True)
            atomic_write_bytes(self.out / figure, drawn)
            outputs[figure] = {"bytes": len(drawn), "sha256": sha256_bytes(drawn)}

        flags = (*prepared.flags, *self._age_flags(job), *self._diagnosis_flags(job))
        interval = self.predictor.interval if self.predictor and job.age_interval else None
        flags = flags if interval is None else (*flags, *interval.caveat(flags))
        status: Literal["ok", "flagged"] = "flagged" if flags else "ok"
        sidecars = {space: self._sidecar(job, prepared, space) for space in self.spaces}
        for space in self.spaces[1:]:
            name = _sidecar(scan.name + suffix(space, self.recipe))
            written.append(name)
            data_bytes = _json(sidecars[space])
            atomic_write_bytes(self.out / name, data_bytes)
            outputs[name] = {"bytes": len(data_bytes), "sha256": sha256_bytes(data_bytes)}
        record = Record(
            sha256,
            self.bundle.id,
            fingerprint(self.options),
            status,
            flags,
            job.age_raw,
            job.age_corrected,
            outputs,
            figure,
            job.diagnosis_probability,
            age_interval=job.age_interval,
            age_interval_coverage=None if interval is None else interval.level,
        )
        main = {**sidecars[self.spaces[0]], "hz": record.to_dict()}
        atomic_write_bytes(self.out / _sidecar(self.outputs(scan)[0]), _json(main))
        return ScanResult(
            input=scan.label,
            name=scan.name,
            status=status,
            reason="; ".join(flags),
            outputs=tuple(self._listed(scan)),
            figure=figure,
            age_raw=job.age_raw,
            age_corrected=job.age_corrected,
            diagnosis_probability=job.diagnosis_probability,
            age=job.age,
            flags=flags,
            sha256=sha256,
            seconds=job.seconds,
            gates=job.gates,
            age_interval=job.age_interval,
        )

    def _age_flags(self, job: Job) -> list[str]:
        span = self.bundle.cohort.get("age_range")
        age = job.age_raw if job.age_corrected is None else job.age_corrected
        if self.predictor is not None and age is None:
            return ["the age network gave no number"]
        if age is None or not span or float(span[0]) <= age <= float(span[1]):
            return []
        return [f"predicted age {age:.1f} is outside the training range {span[0]:g} to {span[1]:g}"]

    def _diagnosis_flags(self, job: Job) -> list[str]:
        missing = self.diagnosis is not None and job.diagnosis_probability is None
        return ["the diagnosis network gave no number"] if missing else []

    def _sidecar(self, job: Job, prepared: ModelInput, space: str) -> dict[str, Any]:
        """BIDS derivative metadata of one output volume."""
        target = self.options["to"]
        return {
            "Description": f"T1-weighted scan harmonized to {target or 'the reference site'}",
            "Sources": [_plain(job.scan.path.name)],
            "SpatialReference": "orig" if space == "native" else self._grid_reference(job, prepared),
            **({} if space == "native" else {"Resolution": "the voxel grid of the network"}),
            "Units": "arbitrary",
            "SkullStripped": True,
            "GeneratedBy": [
                {
                    "Name": "hz",
                    "Version": hz_version(),
                    "Bundle": {"Name": self.bundle.name, "Id": self.bundle.id},
                    "Engine": job.engine or _engine(self.harmonizer.backend),
                    "Options": dict(self.options),
                }
            ],
            "SourceIntensityRange": [_digits(prepared.low), _digits(prepared.high)],
            "TranslationMm": [_digits(x) for x in prepared.shift_mm],
            "Features": {k: _digits(v) for k, v in sorted(prepared.features.items())},
            **({"Preparation": job.preparation} if job.preparation else {}),
        }

    def _grid_reference(self, job: Job, prepared: ModelInput) -> str:
        """Where the model grid lies: of a raw head in the template's world; else its affine is in the scan's
        own world, so that it overlays the scan."""
        shape = " x ".join(map(str, self.recipe.grid_shape))
        if job.model_grid is not None:
            return (
                f"{self.recipe.template} template field of view on {shape} voxels, in template coordinates "
                "(Preparation.transform leads there)"
            )
        moved = ", moved to the scan" if any(prepared.shift_mm) else ""
        return f"{self.recipe.template} template field of view on {shape} voxels{moved}"


def _engine(backend: Backend) -> dict[str, str]:
    """What a sidecar says about the engine."""
    return {"Name": backend.name, "Provider": backend.provider, "Precision": backend.precision}


def _sidecar(volume_name: str) -> str:
    return volume_name.removesuffix(".nii.gz") + ".json"


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _plain(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _digits(value: float) -> float:
    """Six significant digits: what a reader needs, and no noise of the last bit."""
    return float(f"{float(value):.6g}")


def _rounded(answers: Any, n: int) -> float | None:
    """Element n of an array of years or probabilities, rounded to 1/10000; None where there is none or it is
    not finite."""
    if answers is None:
        return None
    value = float(np.asarray(answers).reshape(-1)[n])
    return round(value, 4) if np.isfinite(value) else None
