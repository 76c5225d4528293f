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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.batch.executor import Event, Executor
from hz_runtime.batch.first_scan import FirstScan
from hz_runtime.batch.folder_lock import locked, remove_leftovers
from hz_runtime.batch.folder_run import FolderRun
from hz_runtime.batch.inputs import InputScan, collect
from hz_runtime.batch.log import LOG_NAME, RunLog
from hz_runtime.batch.opened import Opened, open_bundle
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.errors import UsageError
from hz_runtime.results.run_report import RunReport
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

if TYPE_CHECKING:
    from hz_runtime.batch.cluster import Cluster
    from hz_runtime.batch.cluster_executor import ClusterExecutor
    from hz_runtime.bundle.store import Bundle
    from hz_runtime.dicom.scans import DicomScans


def run_batch(
    inputs: Sequence[str | os.PathLike[str]],
    bundle: Bundle,
    out: str | os.PathLike[str],
    options: RunOptions | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    cluster: Cluster | None = None,
) -> RunReport:
    """Harmonize and predict `inputs` (files, folders, patterns) into the folder `out`.

    on_event : called in the calling thread.  stop : set it from anywhere to end early: scans in flight are
    finished (of a `Stop` with a deadline, those that are in time), the others reported as skipped, and all
    result files written.
    cluster : workers that do the scans, with one thread of the network each unless `options` say otherwise;
    None: this process. What they leave is the same. DICOM is not for them.
    Returns the report that run.json holds. Where nothing has changed since the run that wrote it, nothing is
    written, log and times included. A scan that fails does not raise. Raises UsageError (no input,
    output folder held by another run or not writable), BundleError, BackendError: then nothing was run.
    """
    options = options or RunOptions()
    folder = Path(os.path.abspath(out))
    emit = on_event or (lambda _: None)
    stop = stop or threading.Event()
    if cluster is not None:
        options = replace(options, threads=options.threads or 1)
    with ExitStack() as held:
        chosen = collect(inputs, folder, None if cluster else _dicom(options, held))
        if cluster is not None:
            refuse_dicom(chosen.scans, "Every worker would have to see it converted.")
        total = len(chosen.scans)
        options.ages.check(total)
        if options.preparation:
            options.preparation.check(total)
        held.enter_context(locked(folder))
        log = RunLog(folder / LOG_NAME, held=(folder / "run.json").exists())
        held.push(lambda kind, *_: log.release() if kind else None)  # a run that breaks off leaves its lines
        first = None
        again = (folder / "run.json").exists()  # then the scan may be done
        if not again and options.preparation is None and cluster is None:
            first = FirstScan(chosen.scans[0], bundle, options.limits)
            held.callback(first.wait)
        opened = open_bundle(bundle, options)
        held.callback(opened.close)
        run = FolderRun(folder, chosen, opened, options.ages, log, emit, first)
        run.announce()
        executor = executor_of(opened, stop, cluster)
        results: dict[int, ScanResult] = {}
        for index, result in executor.run(run.jobs(), total):
            results[index] = result
            run.account(index, result)
            if result.reason != NOT_REACHED:
                emit(Event("scan", chosen.scans[index].source, result, len(results), total))
        if not isinstance(executor, Executor):
            run.say(executor.notes())
            remove_leftovers(folder)  # of workers that were killed as they wrote
        return run.end([results[index] for index in range(total)], stop.is_set())


def executor_of(
    opened: Opened, stop: threading.Event, cluster: Cluster | None = None
) -> Executor | ClusterExecutor:
    """What does the jobs of a run: threads of this process, or workers of a cluster."""
    if cluster is None:
        return threads_of(opened, stop)
    from hz_runtime.batch.cluster_executor import ClusterExecutor  # all that prepares heads comes with it

    return ClusterExecutor(cluster, opened, stop)


def threads_of(opened: Opened, stop: threading.Event) -> Executor:
    """The threads of this process that do the jobs of a run."""
    heads = opened.preparer is not None
    return Executor(opened.threads, opened.batch, heads, opened.options.max_voxels, stop)


def refuse_dicom(scans: Sequence[InputScan], why: str) -> None:
    """Raise UsageError where DICOM is among the scans of a run that is divided."""
    fault = next((scan.fault for scan in scans if scan.fault is not None), None)
    if fault is not None:
        raise UsageError(f"{fault.message} {why}", "Convert it first, with dcm2niix.")


def _dicom(options: RunOptions, held: ExitStack) -> DicomScans | None:
    """What takes DICOM inputs, until `held` ends: a series is a raw head."""
    if options.preparation is None:
        return None
    from hz_runtime.dicom.scans import dicom_scans

    return held.enter_context(dicom_scans())
