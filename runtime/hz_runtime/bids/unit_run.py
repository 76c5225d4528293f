"""One participant in one session while it is run: its folder, its jobs, and what is published of it.

Which units there are, and the threads that do their scans, are `participant`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from hz_runtime.batch.executor import Event, Job
from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.folder_run import FolderRun
from hz_runtime.batch.inputs import collect
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.log import LOG_NAME, RunLog
from hz_runtime.batch.opened import Opened
from hz_runtime.bids.derivatives import publish
from hz_runtime.bids.layout import Unit
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import shown
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult


class UnitRun:
    """A unit whose scans are on their way. Its folder below `work` stays locked until it has ended.

    raw, out : roots of both data sets.  linked : see `publish`.  problems : one line each.
    changed : whether anything was written.  scans : the results, once it has ended.
    """

    def __init__(self, unit: Unit, work: Path, raw: Path, out: Path, linked: bool) -> None:
        self.unit = unit
        self.problems: list[str] = []
        self.scans: tuple[ScanResult, ...] = ()
        self.changed = False
        self._folder, self._raw, self._out, self._linked = work / unit.name, raw, out, linked
        self._held = ExitStack()
        self._results: dict[int, ScanResult] = {}
        self._run: FolderRun | None = None

    def begin(self, opened: Opened, emit: Callable[[Event], None]) -> Iterator[Job]:
        """The unit's jobs, its folder locked; none where it cannot be run, which is then a problem.

        Raises UsageError and OSError that are not this unit's own.
        """
        try:
            chosen = collect(self.unit.scans, self._folder)
            self._held.enter_context(locked(self._folder))
        except (UsageError, OSError) as error:
            self._refused(error)
            return iter(())
        log = RunLog(self._folder / LOG_NAME, held=(self._folder / "run.json").exists())
        self._held.push(lambda kind, *_: log.release() if kind else None)  # see `run_batch`
        self._run = FolderRun(self._folder, chosen, opened, known_ages(self.unit), log, emit)
        self._run.announce()
        return self._run.jobs()

    def take(self, place: int, result: ScanResult) -> bool:
        """Note the result of the scan at `place`; returns whether it was the last one."""
        assert self._run is not None
        self._results[place] = result
        self._run.account(place, result)
        return len(self._results) == len(self.unit.scans)

    def end(self) -> None:
        """Write the folder's own files, publish what is in it, and give it free."""
        assert self._run is not None
        scans = [self._results[place] for place in range(len(self.unit.scans))]
        with self._held:
            try:
                report = self._run.end(scans, any(scan.reason == NOT_REACHED for scan in scans))
            except (UsageError, OSError) as error:
                self._refused(error)
                return
            self.scans = report.scans
            self.changed |= not report.unchanged
            self.problems += [f"{self.unit.name}: {problem}" for problem in report.problems]
            # A file that could not be written may still be an earlier run's, which is another result.
            if report.problems or all(scan.reason == NOT_REACHED for scan in scans):
                return
            try:
                self.changed |= publish(
                    self.unit, self._folder, self._raw, self._out, report.run, self._linked
                )
            except (HzError, OSError) as error:
                self.problems.append(f"{self.unit.name}: not published: {_one_line(error)}")

    def close(self) -> None:
        """Give the folder free where the run broke off."""
        self._held.close()

    def _refused(self, error: UsageError | OSError) -> None:
        """Note an error about this unit: its folder is held or cannot be written, or its scans are gone.

        Raises any other one.
        """
        from_system = isinstance(error, OSError) or isinstance(error.__cause__, OSError)
        if not from_system and any(os.path.lexists(scan) for scan in self.unit.scans):
            raise error
        self.problems.append(f"{self.unit.name}: {_one_line(error)}")


def known_ages(unit: Unit) -> KnownAges:
    """Age and site of a unit's scans, as a run takes them."""
    return KnownAges(
        {} if unit.age is None else {path.name: unit.age for path in unit.scans},
        site_by_file={} if unit.site is None else {path.name: unit.site for path in unit.scans},
        notes=unit.notes,
    )


def _one_line(error: HzError | OSError) -> str:
    """An error on one line that names no folder."""
    if isinstance(error, HzError):
        return error.one_line
    named = f"{shown(error.filename)}: " if isinstance(error.filename, str) else ""
    return f"{named}{error.strerror or type(error).__name__}."
