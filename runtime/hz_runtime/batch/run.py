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
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hz_runtime.backends.base import notes, on_gpu
from hz_runtime.batch.executor import Event, Executor
from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.inputs import Inputs, collect
from hz_runtime.batch.log import LOG_NAME, RunLog
from hz_runtime.batch.run_files import unchanged_run, write_run_files
from hz_runtime.batch.run_metadata import age_metadata, run_metadata
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.batch.stages import Stages
from hz_runtime.cpus import usable_cpus
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.run_report import RunReport
from hz_runtime.results.versions import hz_version

if TYPE_CHECKING:
    from hz_runtime.backends.fallback import Attempt
    from hz_runtime.bundle.store import Bundle
    from hz_runtime.dicom.scans import DicomScans
    from hz_runtime.inference.open import Networks
    from hz_runtime.preparation.preparer import Preparer

GPU_BATCH = 4


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
    Returns the report that run.json holds. Where nothing has changed since the run that wrote it, nothing is
    written, log and times included. A scan that fails does not raise. Raises UsageError (no input,
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
        log = RunLog(folder / LOG_NAME, held=(folder / "run.json").exists())
        held.push(lambda kind, *_: log.release() if kind else None)  # a run that breaks off leaves its lines
        stages, networks, batch = _open(bundle, folder, options)
        held.callback(networks.close)
        attempts = _attempt_lines(networks)
        _announce(chosen, stages, attempts, options, log, emit)
        stop = stop or threading.Event()
        threads = options.threads or usable_cpus()
        executor = Executor(stages, threads, options.max_voxels, options.ages, log, emit, stop)
        started, clock = datetime.now(UTC), time.perf_counter()
        scans = executor.run(chosen.scans)
        seconds = time.perf_counter() - clock
        interrupted = stop.is_set()
        engine_notes = _notes(networks)
        _say(engine_notes, log, emit)
        run = run_metadata(
            stages,
            options,
            scans,
            sites=[options.ages.site_of(scan) for scan in chosen.scans],
            started=started,
            seconds=seconds,
            interrupted=interrupted,
            backend={
                **_backend(stages.harmonizer.backend),
                "ladder": [line for line, _ in attempts],
                "notes": engine_notes,
            },
            chosen={"threads": threads, "batch": batch, "to": stages.options["to"]},
        )
        if earlier := unchanged_run(folder, scans, run, options.report):
            return RunReport(folder, scans, earlier, unchanged=True)
        log.release()
        problems = write_run_files(folder, scans, run, options.report)
        report = RunReport(folder, scans, run, interrupted, tuple(problems))
        log.write(report.summary())
        for problem in problems:
            log.write(problem)
        return report


def _announce(
    chosen: Inputs,
    stages: Stages,
    attempts: Sequence[tuple[str, Attempt]],
    options: RunOptions,
    log: RunLog,
    emit: Callable[[Event], None],
) -> None:
    """Say what is about to run, on what, and what the inputs left unclear."""
    bundle, backend = stages.bundle, stages.harmonizer.backend
    log.write(f"hz {hz_version()}: {len(chosen.scans)} scans, bundle {bundle.name} {bundle.id}")
    for line, _ in attempts:
        log.write(line)
    if options.backend != "auto":  # what was asked for by name and is not to be had is said aloud
        for line, attempt in attempts:
            if attempt.outcome != "ran":
                emit(Event("note", line))
    emit(Event("start", f"{backend.name} on {backend.device}", total=len(chosen.scans)))
    for note in chosen.notes:
        log.write(note.text)
        emit(Event("note", note.screen))
    holds = RunOutputs.of(age_metadata(stages)).holds_for
    ages = (f"ages hold only for {holds}",) if stages.predictor else ()
    _say((*options.ages.gaps(chosen.scans), *ages), log, emit)


def _say(notes: Iterable[str], log: RunLog, emit: Callable[[Event], None]) -> None:
    for note in notes:
        log.write(note)
        emit(Event("note", note))


def _dicom(options: RunOptions, held: ExitStack) -> DicomScans | None:
    """What takes DICOM inputs, until `held` ends: a series is a raw head."""
    if options.preparation is None:
        return None
    from hz_runtime.dicom.scans import dicom_scans

    return held.enter_context(dicom_scans())


def _open(bundle: Bundle, out: Path, options: RunOptions) -> tuple[Stages, Networks, int]:
    """The stages over opened networks, these networks, and the batch size."""
    from hz_runtime.inference.open import NetworkOptions, open_networks

    preparer = _preparer(options, bundle)
    networks = open_networks(
        bundle,
        NetworkOptions(
            to=options.to,
            backend=options.backend,
            require=options.require,
            precision=options.precision,
            threads=options.threads,
            build=options.build,
            cuda_graphs=options.cuda_graphs,
        ),
    )
    harmonizer = networks.harmonizer
    backend = harmonizer.backend
    # The slices of one scan fill batches of their own: waiting for other scans would gain nothing.
    batch = options.batch or (GPU_BATCH if on_gpu(backend) and not harmonizer.slice_wise else 1)
    stages = Stages(
        bundle=bundle,
        recipe=harmonizer.recipe,
        harmonizer=harmonizer,
        predictor=networks.age_predictor,
        out=out,
        space=options.space,
        dtype=options.dtype,
        figures=options.report,
        overwrite=options.overwrite,
        options={
            "space": options.space,
            "dtype": options.dtype,
            "to": harmonizer.entry.target,
            # Results of an earlier run are taken over only where they were asked for in the same precision.
            **({"precision": options.precision} if options.precision else {}),
            **({"prepare": dict(preparer.identity)} if preparer else {}),
        },
        batch=batch,
        limits=options.limits,
        diagnosis=networks.diagnosis_predictor,
        preparer=preparer,
    )
    return stages, networks, batch


def _preparer(options: RunOptions, bundle: Bundle) -> Preparer | None:
    if options.preparation is None:
        return None
    from hz_runtime.preparation.preparer import Preparer

    return Preparer.opened(options.preparation, bundle)


def _backend(backend: Any) -> dict[str, str]:
    from hz_runtime.backends.base import describe

    return describe(backend)


def _attempt_lines(networks: Networks) -> list[tuple[str, Attempt]]:
    """Every engine that was tried, and its line in log and run.json, with its role if there are several."""
    several = len(networks.attempts) > 1
    return [
        (f"{role}: {attempt}" if several else str(attempt), attempt)
        for role, attempts in networks.attempts.items()
        for attempt in attempts
    ]


def _notes(networks: Networks) -> list[str]:
    """What the engines had to do to get through the run."""
    return [f"{role}: {note}" for role, backend in networks.backends.items() for note in notes(backend)]
