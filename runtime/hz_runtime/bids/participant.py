"""The participant level: hz's pipeline over all participants and sessions, published as BIDS derivatives."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.batch.executor import Event, Job
from hz_runtime.batch.opened import Opened, open_bundle
from hz_runtime.batch.run import executor_of
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bids.derivatives import WORK_NAME, describe_dataset, write_dataset_files
from hz_runtime.bids.layout import Unit
from hz_runtime.bids.unit_run import UnitRun
from hz_runtime.errors import UsageError
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

if TYPE_CHECKING:
    from hz_runtime.batch.cluster import Cluster
    from hz_runtime.bundle.store import Bundle


@dataclass(frozen=True)
class Level:
    """What a level did.

    scans : of all units.  problems : one line each for what could not be done.
    notes : one line each for what is to be known of the results as a whole.
    unchanged : all was as it should be before, and no file was written.
    """

    scans: tuple[ScanResult, ...]
    problems: tuple[str, ...] = ()
    interrupted: bool = False
    notes: tuple[str, ...] = ()
    unchanged: bool = False

    @property
    def exit_code(self) -> int:
        """0 all done, 3 some scans or participants failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return 3 if self.problems or any(scan.status == "failed" for scan in self.scans) else 0


def run_participants(
    units: Sequence[Unit],
    bundle: Bundle,
    raw: Path,
    out: Path,
    options: RunOptions | None = None,
    *,
    work: Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    cluster: Cluster | None = None,
) -> Level:
    """Harmonize and predict the scans of `units`, overlapping as in one run, into the data set `out`.

    raw, out : roots of the raw and the derivative data set, absolute.
    work : where units are worked on and resumed from; None: `out`/.hz.  cluster : see `run_batch`.
    Networks are opened once. A unit is published as soon as its last scan is done. Other processes may do
    other units of the same `out` at the same time; a unit that one of them holds, or that cannot be written,
    is a problem, and the rest goes on. Raises UsageError where the options do not fit the scans, before
    anything is written, and UsageError, BundleError, BackendError where no unit can be run.
    """
    options = options or RunOptions()
    if cluster is not None:
        options = replace(options, threads=options.threads or 1)
    total = sum(len(unit.scans) for unit in units)
    _refuse_inside(raw, out)
    if options.preparation:
        options.preparation.check(total)
    stop = stop or threading.Event()
    opened = open_bundle(bundle, options)
    try:
        changed = write_dataset_files(out, raw)
        linked = "DatasetLinks" in describe_dataset(out, raw)
        runs = [UnitRun(unit, work or out / WORK_NAME, raw, out, linked) for unit in units]
        queue = _UnitQueue(runs, opened, stop)
        events = _LevelEvents(on_event or (lambda _: None), total)
        backend = opened.networks.harmonizer.backend
        events(Event("start", f"{backend.name} on {backend.device}"))
        executor = executor_of(opened, stop, cluster)
        try:
            for place, result in executor.run(queue.jobs(), total):
                run, index = queue.places[place]
                for event in queue.heard():
                    events(event)
                if result.reason != NOT_REACHED:
                    events(Event("scan", result=result))
                if run.take(index, result):
                    run.end()
        finally:
            for run in runs:
                run.close()
            for event in queue.heard():
                events(event)
        if queue.fault is not None:
            raise queue.fault
    finally:
        opened.close()
    scans = tuple(scan for run in runs for scan in run.scans)
    problems = tuple(problem for run in runs for problem in run.problems)
    unchanged = not (changed or problems or any(run.changed for run in runs))
    return Level(scans, problems, stop.is_set(), unchanged=unchanged)


class _UnitQueue:
    """The jobs of all units, each unit begun when its turn comes.

    places : of each job, its unit's run and its place in there.  fault : what ended the level, of no unit.
    """

    def __init__(self, runs: Sequence[UnitRun], opened: Opened, stop: threading.Event) -> None:
        self.places: list[tuple[UnitRun, int]] = []
        self.fault: Exception | None = None
        self._runs, self._opened, self._stop = runs, opened, stop
        self._events: deque[Event] = deque()

    def jobs(self) -> Iterator[Job]:
        """Looked at by one reading thread at a time; a unit that is refused is passed over."""
        for run in self._runs:
            try:
                jobs = run.begin(self._opened, self._events.append)
            except Exception as error:
                self.fault = error
                return
            for index, job in enumerate(jobs):
                self.places.append((run, index))
                yield job
            if self._stop.is_set():
                return

    def heard(self) -> Iterator[Event]:
        """What was said since the last call; for the calling thread, which events are heard in."""
        while self._events:
            yield self._events.popleft()


class _LevelEvents:
    """Passes the events of all units on as those of the whole level.

    It starts once, scans are counted over all units, and a note about a table that they share is heard once.
    """

    def __init__(self, emit: Callable[[Event], None], total: int) -> None:
        self._emit, self._total = emit, total
        self._started, self._done = False, 0
        self._notes: set[str] = set()

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            if self._started:
                return
            self._started = True
        if event.kind == "note":
            if event.text in self._notes:
                return
            self._notes.add(event.text)
        self._done += event.kind == "scan"
        self._emit(replace(event, done=self._done if event.kind == "scan" else 0, total=self._total))


def _refuse_inside(raw: Path, out: Path) -> None:
    inside = out.relative_to(raw).parts if out.is_relative_to(raw) else ()
    if raw.is_relative_to(out) or any(part.startswith("sub-") for part in inside[:1]):
        raise UsageError(
            f"the output folder {out.name} would mix with the raw data set.",
            "Choose another one:  hz-bids BIDS_DIR BIDS_DIR/derivatives/hz participant",
        )
