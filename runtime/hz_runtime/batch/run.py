"""A run: many scans in, one folder of results out.

A scan that fails becomes a row; the others never notice. What a scan gives does not depend on order or
neighbours, nor on how often the run was killed and started again.

It does depend a little on what runs the network: engines round otherwise, and OpenVINO does so with another
number of threads, too. Measured with the reference bundle on ten brains: up to 2e-3 of the full range and
0.02 years, between the CPU engines and between 1 and 2 threads of OpenVINO; onnxruntime gave the same bytes
with 1, 2 and 3 threads. Sidecars name the engine, run.json the threads; a run that takes over a result of
another engine says so.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hz_runtime.backends.base import notes, on_gpu
from hz_runtime.batch.executor import Event, Executor
from hz_runtime.batch.failures import scrub
from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.inputs import collect
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.log import LOG_NAME, RunLog
from hz_runtime.batch.stages import Space, Stages
from hz_runtime.bundle import age_calibration
from hz_runtime.cpus import usable_cpus
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import atomic_write_bytes
from hz_runtime.io.json_text import to_json
from hz_runtime.io.volume import ReadLimits
from hz_runtime.model_space.recipe import Recipe
from hz_runtime.results.prediction import predictions_tsv
from hz_runtime.results.run_report import RunReport, count, dataset_description
from hz_runtime.results.scan_result import STAGES, ScanResult
from hz_runtime.results.versions import hz_version, versions

if TYPE_CHECKING:
    from hz_runtime.backends.base import Backend
    from hz_runtime.backends.fallback import Build
    from hz_runtime.bundle.store import Bundle
    from hz_runtime.dicom.scans import DicomScans
    from hz_runtime.preparation.preparer import Preparation, Preparer

GPU_BATCH = 4


@dataclass(frozen=True)
class RunOptions:
    """How to run; None means: choose well here.

    space : "native" (default; the scan's own grid), "model" (the network's), or "both".
    to : site to harmonize to.  backend, require, build, graphs : as `backends.choose`.
    precision : of the files to run, where the bundle holds such a file of a network; else that of the rung.
    dtype : of the written volumes; int16 keeps 1/32767 of the range.
    threads : CPU threads of the network (None: all); also scales the other stages.
    batch : scans a network call; None: 1 on a CPU, 4 on a GPU.
    max_voxels : bound on voxels in flight; None: that of four 256^3 scans, more with many threads.
    ages : known ages.  report : draw figures and write report.html, and group.html where scans compare.
    preparation : how raw heads become brains (extra `prep`); None: scans are skull-stripped already. With it
    DICOM is taken, too (extra `dicom`).
    """

    space: Space = "native"
    to: str | None = None
    backend: str = "auto"
    require: str | None = None
    dtype: Literal["int16", "float32"] = "int16"
    threads: int | None = None
    batch: int | None = None
    overwrite: bool = False
    report: bool = True
    ages: KnownAges = field(default_factory=KnownAges)
    max_voxels: int | None = None
    limits: ReadLimits | None = None
    build: Build | None = None
    graphs: bool = False
    precision: str | None = None
    preparation: Preparation | None = None

    def __post_init__(self) -> None:
        for name, values in {"space": ("native", "model", "both"), "dtype": ("int16", "float32")}.items():
            if getattr(self, name) not in values:
                raise UsageError(f"{name} {getattr(self, name)!r} is not one of {', '.join(values)}.")
        for name in ("threads", "batch", "max_voxels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more.")


def run_batch(
    inputs: Sequence[str | os.PathLike[str]],
    bundle: Bundle,
    out: str | os.PathLike[str],
    options: RunOptions | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
) -> RunReport:
    """Harmonize and predict `inputs` (files, folders, patterns) into the folder `out`.

    on_event : called in the calling thread.  stop : set it from anywhere to end early: scans in flight are
    finished, the others reported as skipped, and all result files written.
    Returns the report that run.json holds. A scan that fails does not raise. Raises UsageError (no input,
    output folder held by another run or not writable), BundleError, BackendError: then nothing was run.
    """
    options = options or RunOptions()
    folder = Path(os.path.abspath(out))
    emit = on_event or (lambda _: None)
    with ExitStack() as held:
        chosen = collect(inputs, folder, _dicom(options, held))
        options.ages.check(len(chosen.scans))
        if options.preparation:
            options.preparation.check(len(chosen.scans))
        held.enter_context(locked(folder))
        log = RunLog(folder / LOG_NAME)
        stages, ladder, batch = _open(bundle, folder, options)
        try:
            backend = stages.harmonizer.backend
            log.write(f"hz {hz_version()}: {len(chosen.scans)} scans, bundle {bundle.name} {bundle.id}")
            for step in ladder:
                log.write(step)
            if options.backend != "auto":  # what was asked for by name and is not to be had is said aloud
                for step in _passed_over(ladder):
                    emit(Event("note", step))
            emit(Event("start", f"{backend.name} on {backend.device}", total=len(chosen.scans)))
            for note in (*chosen.notes, *options.ages.gaps(chosen.scans)):
                log.write(note)
                emit(Event("note", note))
            stop = stop or threading.Event()
            threads = options.threads or usable_cpus()
            flow = Executor(stages, threads, options.max_voxels, options.ages, log, emit, stop)
            started, clock = datetime.now(UTC), time.perf_counter()
            scans = flow.run(chosen.scans)
            seconds = time.perf_counter() - clock
            interrupted = stop.is_set()
            said = _notes(stages)
            for note in said:
                log.write(note)
                emit(Event("note", note))
            run = {
                "schema": "1.0",
                "hz_version": hz_version(),
                "versions": versions(),
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(seconds, 3),
                "interrupted": interrupted,
                "bundle": {"name": bundle.name, "id": bundle.id},
                "backend": {**_backend(backend), "ladder": list(ladder), "notes": said},
                "options": {
                    **_shown(options),
                    "threads": threads,
                    "batch": batch,
                    "to": stages.options["to"],
                },
                **_age(stages),
                **_diagnosis(stages),
                "timings": _timings(scans, seconds),
                "counts": count(scans),
                "scans": [
                    {**result.to_dict(), **options.ages.site_of(scan)}
                    for scan, result in zip(chosen.scans, scans, strict=True)
                ],
            }
            positive = stages.diagnosis.labels[1] if stages.diagnosis else None
            problems = _write_tables(folder, scans, run, options.report, positive)
        finally:
            _close(stages)
        report = RunReport(folder, scans, run, interrupted, tuple(problems))
        log.write(report.summary())
        for problem in problems:
            log.write(problem)
        return report


def _dicom(options: RunOptions, held: ExitStack) -> DicomScans | None:
    """What takes DICOM inputs, until `held` ends: a series is a raw head."""
    if options.preparation is None:
        return None
    from hz_runtime.dicom.scans import dicom_scans

    return held.enter_context(dicom_scans())


def _open(bundle: Bundle, out: Path, options: RunOptions) -> tuple[Stages, tuple[str, ...], int]:
    """The stages over opened backends, the ladder's steps, and the batch size."""
    from hz_runtime.backends.fallback import choose
    from hz_runtime.inference.predictors import AgePredictor, DiagnosisPredictor, Harmonizer

    recipe = Recipe.from_dict(dict(bundle.recipe))
    preparer = _preparer(options, bundle)
    held = {model.role for model in bundle.models if model.precision == options.precision}
    if options.precision and not held:
        raise UsageError(
            f"{bundle.path.name} holds no {options.precision} file.",
            "Leave --precision out, or export one:  hz-export --help",
        )

    def how(role: str, to: str | None = None) -> tuple[Backend, tuple[str, ...]]:
        return choose(
            bundle,
            role,
            backend=options.backend,
            require=options.require,
            to=to,
            precision=options.precision if role in held else None,
            threads=options.threads,
            build=options.build,
            graphs=options.graphs,
        )

    backend, ladder = how("harmonizer", to=options.to)
    entry = bundle.entry(backend.sha256)
    harmonizer = Harmonizer(backend, recipe, entry)
    predictor = diagnosis = None
    roles = {model.role for model in bundle.models}
    if roles & {"age", "diagnosis"}:
        ladder = tuple(f"harmonizer: {step}" for step in ladder)
    if "age" in roles:
        second, steps = how("age")
        predictor = AgePredictor(second, bundle.age_bias, recipe, bundle.age_interval)
        ladder = (*ladder, *(f"age: {step}" for step in steps))
    if "diagnosis" in roles:
        third, steps = how("diagnosis")
        diagnosis = DiagnosisPredictor(third, bundle.entry(third.sha256), recipe)
        ladder = (*ladder, *(f"diagnosis: {step}" for step in steps))
    # The slices of one scan fill batches of their own: waiting for other scans would gain nothing.
    batch = options.batch or (GPU_BATCH if on_gpu(backend) and not harmonizer.slice_wise else 1)
    stages = Stages(
        bundle=bundle,
        recipe=recipe,
        harmonizer=harmonizer,
        predictor=predictor,
        out=out,
        space=options.space,
        dtype=options.dtype,
        figures=options.report,
        overwrite=options.overwrite,
        options={
            "space": options.space,
            "dtype": options.dtype,
            "to": entry.target,
            # Results of an earlier run are taken over only where they were asked for in the same precision.
            **({"precision": options.precision} if options.precision else {}),
            **({"prepare": dict(preparer.identity)} if preparer else {}),
        },
        batch=batch,
        limits=options.limits,
        diagnosis=diagnosis,
        preparer=preparer,
    )
    return stages, tuple(ladder), batch


def _preparer(options: RunOptions, bundle: Bundle) -> Preparer | None:
    if options.preparation is None:
        return None
    from hz_runtime.preparation.preparer import Preparer

    return Preparer.opened(options.preparation, bundle)


def _close(stages: Stages) -> None:
    for backend in _backends(stages).values():
        backend.close()


def _backends(stages: Stages) -> dict[str, Backend]:
    """The opened networks by role."""
    tasks = {"harmonizer": stages.harmonizer, "age": stages.predictor, "diagnosis": stages.diagnosis}
    return {role: task.backend for role, task in tasks.items() if task is not None}


def _age(stages: Stages) -> dict[str, Any]:
    """What run.json says about an age network: which age is shown, and its interval; nothing without one."""
    if stages.predictor is None:
        return {}
    bundle = stages.bundle
    return {
        "age": age_calibration.age_metadata(
            bundle.age_interval, bundle.age_bias, bundle.cohort.get("age_range")
        )
    }


def _diagnosis(stages: Stages) -> dict[str, Any]:
    """What run.json says about a diagnosis network: whose probability it gives; nothing without one."""
    if stages.diagnosis is None:
        return {}
    negative, positive = stages.diagnosis.labels
    return {"diagnosis": {"negative": negative, "positive": positive}}


def _backend(backend: Any) -> dict[str, str]:
    from hz_runtime.backends.base import describe

    return describe(backend)


def _passed_over(ladder: Sequence[str]) -> list[str]:
    """The ladder's steps that did not end in an engine, which `choose` words so."""
    return [step for step in ladder if ": runs " not in step]


def _notes(stages: Stages) -> list[str]:
    """What the engines had to do to get through the run."""
    return [f"{role}: {note}" for role, backend in _backends(stages).items() for note in notes(backend)]


def _shown(options: RunOptions) -> dict[str, Any]:
    """Options as run.json shows them: no ages, no paths, and of `build` whether engines may be built."""
    hidden = ("ages", "limits", "preparation")
    shown = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in hidden}
    prepare = options.preparation.shown() if options.preparation else None
    return {**shown, "build": options.build is not None, "prepare": prepare}


def _timings(scans: Sequence[ScanResult], wall: float) -> dict[str, Any]:
    """Seconds by stage: total over scans, and the median scan's."""
    stages = {}
    for stage in STAGES:
        values = [s.seconds[stage] for s in scans if stage in s.seconds]
        if values:
            stages[stage] = {
                "total_s": round(sum(values), 4),
                "median_s": round(statistics.median(values), 4),
            }
    return {"wall_s": round(wall, 3), "stages": stages}


def _write_tables(
    out: Path, scans: Sequence[ScanResult], run: Mapping[str, Any], report: bool, positive: str | None
) -> list[str]:
    """Write the run's own files; what cannot be written is returned, one line each."""
    problems: list[str] = []
    intervals = run.get("age", {}).get("age_interval_coverage") is not None

    @contextmanager
    def attempt(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            text = error.one_line if isinstance(error, HzError) else f"{type(error).__name__}: {error}"
            problems.append(scrub(f"{name} could not be written: {text}", None, out))

    with attempt("predictions.tsv"):
        atomic_write_bytes(out / "predictions.tsv", predictions_tsv(scans, positive, intervals))
    with attempt("dataset_description.json"):
        atomic_write_bytes(out / "dataset_description.json", to_json(dataset_description()))
    with attempt("run.json"):
        atomic_write_bytes(out / "run.json", to_json(run))
    if report:
        with attempt("report.html"):
            from hz_runtime.report import figures_of, write_pages

            write_pages(out, run, figures_of(out, run["scans"]))
    else:
        from hz_runtime.report import remove_pages

        remove_pages(out)
    return problems
