"""A run of hz-prepare: many heads in, one folder of brains out, none stopping the others.

What becomes of one head, and what of an earlier run is kept, is `head_folder`'s.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.batch.cluster_executor import KILLED
from hz_runtime.batch.cluster_work import HeadWork, Task
from hz_runtime.batch.executor import Event
from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.head_folder import LOG_NAME, HeadFolder, brain_suffix
from hz_runtime.batch.inputs import InputScan, collect
from hz_runtime.batch.log import RunLog
from hz_runtime.batch.run import refuse_dicom
from hz_runtime.cpus import usable_cpus
from hz_runtime.dicom.scans import dicom_scans
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import write_changed
from hz_runtime.preparation.gates import NAMES
from hz_runtime.preparation.preparer import Preparation, Preparer
from hz_runtime.results.output_columns import Row, RunOutputs, quality_columns
from hz_runtime.results.run_report import NOTHING_WRITTEN
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

if TYPE_CHECKING:
    from hz_runtime.batch.cluster import Cluster

MOST_WORKERS = 4  # heads at a time, unless more are asked for
TABLE_NAME = "preparation.tsv"
_WORDS = {"skipped": "not reached"}  # a scan that was done before has its record's status as well


@dataclass(frozen=True)
class PrepareOptions:
    """How to prepare.

    preparation : what is done to each head.  workers : heads at a time; None: as many as there are usable
    CPUs, MOST_WORKERS at most.  overwrite : redo what is done.
    """

    preparation: Preparation = field(default_factory=Preparation)
    workers: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers is {self.workers}; it must be 1 or more.")


@dataclass(frozen=True)
class PrepareReport:
    """A finished run.

    scans : in the order of the inputs.  brains : pattern of the brains in `out`, as hz-run takes them.
    unchanged : all was as it should be before, and no file was written.
    """

    out: Path
    scans: tuple[ScanResult, ...]
    brains: str
    interrupted: bool = False
    unchanged: bool = False

    @property
    def exit_code(self) -> int:
        """0 all done, 3 some scans were refused or failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return 3 if any(scan.status == "failed" for scan in self.scans) else 0

    def summary(self) -> str:
        """One line: how many of each."""
        counts = Counter("done before" if s.recorded else _WORDS.get(s.status, s.status) for s in self.scans)
        words = ("ok", "done before", "failed", "not reached")
        parts = [f"{counts[word]} {word}" for word in words if counts[word]]
        text = f"{len(self.scans)} scan{'' if len(self.scans) == 1 else 's'}: {', '.join(parts)}"
        return f"{text}; {NOTHING_WRITTEN}" if self.unchanged else text


def prepare_batch(
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    options: PrepareOptions | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    cluster: Cluster | None = None,
) -> PrepareReport:
    """Prepare `inputs` (files, folders, patterns, DICOM) into the folder `out`, with preparation.tsv.

    on_event : called in the calling thread.  stop : set it from anywhere to end early: scans in flight are
    finished, the others reported as skipped.  cluster : workers that do the heads, which DICOM is not for.
    A scan that fails does not raise. Raises UsageError (no input, an extra that is not installed, output
    folder held by another run or not writable), BundleError for a damaged brain-mask network: then nothing
    was done; HzError where the table cannot be written.
    """
    options = options or PrepareOptions()
    folder = Path(os.path.abspath(out))
    emit = on_event or (lambda _: None)
    stop = stop or threading.Event()
    results: dict[str, ScanResult] = {}
    with ExitStack() as held:
        found = collect(inputs, folder, None if cluster else held.enter_context(dicom_scans()))
        if cluster is not None:
            refuse_dicom(found.scans, "Every worker would have to see it converted.")
        total = len(found.scans)
        options.preparation.check(total)
        held.enter_context(locked(folder))
        log = RunLog(folder / LOG_NAME, held=(folder / TABLE_NAME).exists())
        held.push(lambda kind, *_: log.release() if kind else None)  # a run that breaks off leaves its lines
        heads = HeadFolder(folder, Preparer.opened(options.preparation), log, options.overwrite)
        for note in found.notes:
            log.write(note.text)
            emit(Event("note", note.screen))
        at_once = cluster.threads if cluster else options.workers or min(MOST_WORKERS, usable_cpus())
        workers = min(at_once, total)
        dof = options.preparation.dof
        emit(Event("start", f"{dof} degrees of freedom, {workers} at a time", total=total))
        sources = {scan.name: scan.source for scan in found.scans}
        done = _on_workers(heads, found.scans, options, cluster, stop) if cluster else None
        for result in done or _each(heads, found.scans, workers, stop):
            results[result.name] = result
            emit(Event("scan", sources[result.name], result, len(results), total))
        scans = tuple(results[scan.name] for scan in found.scans)
        if write_preparation_tsv(folder, scans):
            log.release()
    brains = f"*{brain_suffix(heads.template)}"
    return PrepareReport(folder, scans, brains, stop.is_set(), log.held)


def _each(
    heads: HeadFolder, scans: Sequence[InputScan], workers: int, stop: threading.Event
) -> Iterator[ScanResult]:
    """The result of every scan, as they come; after `stop` is set those not begun are skipped."""

    def one(scan: InputScan) -> ScanResult:
        if stop.is_set():
            return ScanResult(scan.label, scan.name, "skipped", NOT_REACHED)
        return heads.prepare(scan)

    with ThreadPoolExecutor(workers, "head") as pool:
        for done in as_completed([pool.submit(one, scan) for scan in scans]):
            yield done.result()


def _on_workers(
    heads: HeadFolder,
    scans: Sequence[InputScan],
    options: PrepareOptions,
    cluster: Cluster,
    stop: threading.Event,
) -> Iterator[ScanResult]:
    """The same on the workers of a cluster."""
    left = {scan.name: scan for scan in scans}
    work = HeadWork(heads.out, options.preparation, options.overwrite)
    tasks = (Task(index, scan, heads.out) for index, scan in enumerate(scans))
    for task, done in cluster.each(tasks, work, len(scans), 1, stop):
        del left[task.scan.name]
        for line in done.lines if done else ():
            heads.log.write(line)
        if done and done.result.outputs and not done.result.recorded:
            heads.log.release()
        yield done.result if done else ScanResult(task.scan.label, task.scan.name, "failed", KILLED)
    for scan in left.values():
        yield ScanResult(scan.label, scan.name, "skipped", NOT_REACHED)


def write_preparation_tsv(out: Path, results: Sequence[ScanResult]) -> bool:
    """Write preparation.tsv: each scan's status, what each gate measured, and its image quality.

    Returns whether it was written. Raises HzError.
    """
    quality = quality_columns()
    names = (*(gate.replace(" ", "_") for gate in NAMES), *(name for c in quality for name in c.names))
    lines = ["\t".join(("input", "status", "reason", "failed_gates", *names))]
    for result in results:
        gates = {str(gate["gate"]): gate for gate in result.gates}
        failed = ", ".join(name for name, gate in gates.items() if not gate["passed"]) or "n/a"
        values = ["n/a" if (v := gates.get(g, {}).get("value")) is None else f"{v:g}" for g in NAMES]
        said = "; ".join(result.flags) if result.recorded else result.reason  # as of an undisturbed run
        reason = " ".join(said.split())
        row = (result.input, result.recorded or result.status, reason or "n/a", failed)
        own = Row(result.prediction, None, RunOutputs(), result.quality)
        lines.append("\t".join((*row, *values, *(cell for c in quality for cell in c.cells(own)))))
    return write_changed(out / TABLE_NAME, ("\n".join(lines) + "\n").encode())
