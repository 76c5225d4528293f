"""One folder of results while its scans are done: what is announced, its jobs, and its own files at the end.

Whose threads do the scans, and that the folder is locked meanwhile, is for the caller to see to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from hz_runtime.batch.audit import Audit
from hz_runtime.batch.executor import Event, Job
from hz_runtime.batch.first_scan import FirstScan
from hz_runtime.batch.inputs import Inputs, InputScan
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.log import RunLog
from hz_runtime.batch.opened import Opened
from hz_runtime.batch.run_files import unchanged_run, write_run_files
from hz_runtime.batch.run_metadata import age_metadata, run_metadata
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.run_report import RunReport
from hz_runtime.results.scan_result import ScanResult
from hz_runtime.results.versions import hz_version


class FolderRun:
    """The run of the scans `chosen` into a folder that is locked.

    opened : what runs them.  ages : of their people.  log : of the folder.  emit : see `run_batch`.
    first : of the scans, where it was begun with.
    """

    def __init__(
        self,
        folder: Path,
        chosen: Inputs,
        opened: Opened,
        ages: KnownAges,
        log: RunLog,
        emit: Callable[[Event], None],
        first: FirstScan | None = None,
    ) -> None:
        self.folder, self.chosen, self.log = folder, chosen, log
        self._opened, self._ages, self._emit = opened, ages, emit
        self._stages = replace(opened.stages(folder), first=first, alone=len(chosen.scans) == 1)
        self._attempts = opened.attempts()
        self._audit = Audit(opened.options.audit, folder) if opened.options.audit else None
        self._started, self._clock = datetime.now(UTC), time.perf_counter()

    def announce(self) -> None:
        """Say what is about to run, on what, and what the inputs left unclear.

        Raises HzError where this is to be accounted for and cannot be.
        """
        bundle, backend = self._stages.bundle, self._stages.harmonizer.backend
        log, total = self.log, len(self.chosen.scans)
        if self._audit:
            self._audit.start(self._stages, self._opened.networks.backends, total)
        log.write(f"hz {hz_version()}: {total} scans, bundle {bundle.name} {bundle.id}")
        for line, _ in self._attempts:
            log.write(line)
        if (
            self._opened.options.backend != "auto"
        ):  # what was asked for by name and is not to be had is said aloud
            for line, attempt in self._attempts:
                if attempt.outcome != "ran":
                    self._emit(Event("note", line))
        if self._opened.options.precision is not None:  # what became of it, and what is known against it
            for line, attempt in self._attempts:
                if attempt.outcome == "ran":
                    self._emit(Event("note", line))
        self._emit(Event("start", f"{backend.name} on {backend.device}", total=total))
        for note in self.chosen.notes:
            log.write(note.text)
            self._emit(Event("note", note.screen))
        holds = RunOutputs.of(age_metadata(self._stages)).holds_for
        ages = (
            (f"ages hold only for {holds}", *self._calibrated_otherwise()) if self._stages.predictor else ()
        )
        self.say((*self._ages.gaps(self.chosen.scans), *ages))

    def _calibrated_otherwise(self) -> tuple[str, ...]:
        """Where the scans that the ages were calibrated on were prepared in another way than this run's."""
        interval = self._stages.bundle.age_interval
        site = None if interval is None else interval.site
        if site is None or site.raw_heads == (self._stages.preparer is not None):
            return ()
        theirs, ours = ("raw heads", "brains") if site.raw_heads else ("brains", "raw heads")
        return (
            f"{', '.join(site.sites)}: ages were calibrated on {theirs}, and the scans of this run are taken "
            f"for {ours}: their interval need not hold here",
        )

    def say(self, notes: Iterable[str]) -> None:
        """Lines for the log and the screen."""
        for note in notes:
            self.log.write(note)
            self._emit(Event("note", note))

    def jobs(self, begun: Callable[[InputScan], None] | None = None) -> Iterator[Job]:
        """The scans as an executor takes them. The run's time starts with the first.

        begun : called with each scan when its turn comes, by any thread.
        """
        self._started, self._clock = datetime.now(UTC), time.perf_counter()
        for scan in self.chosen.scans:
            turn = None if begun is None else partial(begun, scan)
            yield Job(scan, self._stages, self.log, self._ages.of(scan), turn)

    @property
    def seconds(self) -> float:
        """Since the first scan's turn."""
        return time.perf_counter() - self._clock

    def account(self, index: int, result: ScanResult) -> None:
        """Account for the result of the scan at `index`, where that is asked for. Raises HzError."""
        if self._audit:
            self._audit.scan(self.chosen.scans[index].path, result)

    def account_for_end(self, report: RunReport) -> None:
        """Account for the end of the run, where that is asked for. Raises HzError."""
        if self._audit:
            self._audit.end(report)

    def metadata(self, scans: Sequence[ScanResult], interrupted: bool) -> dict[str, Any]:
        """The object of run.json.  scans : the results, in the order of the inputs; or none of them."""
        notes = self._opened.notes()
        self.say(notes)
        return run_metadata(
            self._stages,
            self._opened.options,
            scans,
            sites=[self._ages.site_of(scan) for scan in self.chosen.scans[: len(scans)]],
            started=self._started,
            seconds=self.seconds,
            interrupted=interrupted,
            backend=self._opened.backend(),
            chosen={
                "threads": self._opened.threads,
                "batch": self._opened.batch,
                "to": self._stages.options["to"],
            },
        )

    def end(self, scans: Sequence[ScanResult], interrupted: bool) -> RunReport:
        """Write the folder's own files, where anything has changed; what run.json holds."""
        options, scans = self._opened.options, tuple(scans)
        run = self.metadata(scans, interrupted)
        if earlier := unchanged_run(self.folder, scans, run, options.report):
            report = RunReport(self.folder, scans, earlier, unchanged=True)
        else:
            self.log.release()
            problems = write_run_files(self.folder, scans, run, options.report)
            report = RunReport(self.folder, scans, run, interrupted, tuple(problems))
            self.log.write(report.summary())
            for problem in problems:
                self.log.write(problem)
        self.account_for_end(report)
        return report
