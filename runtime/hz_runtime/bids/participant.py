"""The participant level: hz's pipeline over each participant and session, published as BIDS derivatives."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.batch.executor import Event
from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bids.derivatives import WORK_NAME, describe_dataset, publish, write_dataset_files
from hz_runtime.bids.layout import Unit
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import shown
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

if TYPE_CHECKING:
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
) -> Level:
    """Harmonize and predict the scans of `units`, one unit after the other, into the data set `out`.

    raw, out : roots of the raw and the derivative data set, absolute.
    work : where units are worked on and resumed from; None: `out`/.hz.
    Other processes may do other units of the same `out` at the same time; a unit that one of them holds, or
    that cannot be written, is a problem, and the rest goes on. Raises UsageError where the options do not fit
    the scans, before anything is written, and UsageError, BundleError, BackendError where no unit can be run.
    """
    options = options or RunOptions()
    total = sum(len(unit.scans) for unit in units)
    _refuse_inside(raw, out)
    if options.preparation:
        options.preparation.check(total)  # `run_batch` sees one unit's scans
    stop = stop or threading.Event()
    work = work or out / WORK_NAME
    changed = write_dataset_files(out, raw)
    linked = "DatasetLinks" in describe_dataset(out, raw)
    events = _LevelEvents(on_event or (lambda _: None), total)
    scans: list[ScanResult] = []
    problems: list[str] = []
    for unit in units:
        folder = work / unit.name
        events.done = len(scans)
        asked = replace(options, ages=known_ages(unit))
        try:
            report = run_batch(unit.scans, bundle, folder, asked, events, stop)
        except (UsageError, OSError) as error:
            if not _is_about(unit, error):
                raise
            problems.append(f"{unit.name}: {_one_line(error)}")
            continue
        scans += report.scans
        changed |= not report.unchanged
        problems += [f"{unit.name}: {problem}" for problem in report.problems]
        # A file that could not be written may still be an earlier run's, which is another result.
        if not report.problems and any(scan.reason != NOT_REACHED for scan in report.scans):
            try:
                with locked(folder):
                    changed |= publish(unit, folder, raw, out, report.run, linked)
            except (HzError, OSError) as error:
                problems.append(f"{unit.name}: not published: {_one_line(error)}")
        if report.interrupted:
            break
    return Level(tuple(scans), tuple(problems), stop.is_set(), unchanged=not (changed or problems))


def known_ages(unit: Unit) -> KnownAges:
    """Age and site of a unit's scans, as a run takes them."""
    return KnownAges(
        {} if unit.age is None else {path.name: unit.age for path in unit.scans},
        site_by_file={} if unit.site is None else {path.name: unit.site for path in unit.scans},
        notes=unit.notes,
    )


def _is_about(unit: Unit, error: UsageError | OSError) -> bool:
    """Whether an error is about one unit: its folder is held or cannot be written, or its scans are gone."""
    from_system = isinstance(error, OSError) or isinstance(error.__cause__, OSError)
    return from_system or not any(os.path.lexists(scan) for scan in unit.scans)


def _one_line(error: HzError | OSError) -> str:
    """An error on one line that names no folder."""
    if isinstance(error, HzError):
        return error.one_line
    named = f"{shown(error.filename)}: " if isinstance(error.filename, str) else ""
    return f"{named}{error.strerror or type(error).__name__}."


class _LevelEvents:
    """Passes the events of each unit's run on as those of the whole level.

    It starts once, scans are counted over all units, and a note about a table that they share is heard once.
    """

    def __init__(self, emit: Callable[[Event], None], total: int) -> None:
        self.done = 0  # scans of the units before
        self._emit, self._total = emit, total
        self._started = False
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
        self._emit(replace(event, done=self.done + event.done, total=self._total))


def _refuse_inside(raw: Path, out: Path) -> None:
    inside = out.relative_to(raw).parts if out.is_relative_to(raw) else ()
    if raw.is_relative_to(out) or any(part.startswith("sub-") for part in inside[:1]):
        raise UsageError(
            f"the output folder {out.name} would mix with the raw data set.",
            "Choose another one:  hz-bids BIDS_DIR BIDS_DIR/derivatives/hz participant",
        )
