"""What a worker of a cluster does: scans of a run, or heads of hz-prepare. A process opens a bundle once."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hz_runtime.batch.executor import Executor, Job
from hz_runtime.batch.head_folder import HeadFolder
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.log import RunLog
from hz_runtime.batch.opened import Opened, open_bundle
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import BundleError
from hz_runtime.preparation.preparer import Preparation, Preparer
from hz_runtime.results.scan_result import ScanResult

_lock = threading.Lock()
_kept: dict[str, tuple[Any, Any]] = {}  # what a process has opened last, by kind, and for what


@dataclass(frozen=True)
class Task:
    """One scan.  index : its place in the run.  out : folder of its results.

    age : known age of its person in years, or None.
    """

    index: int
    scan: InputScan
    out: Path
    age: float | None = None


@dataclass(frozen=True)
class Done:
    """What became of it.  lines : of the log.  engine : what ran the network, as run.json says it."""

    result: ScanResult
    lines: tuple[str, ...] = ()
    engine: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ScanWork:
    """Scans of a run, on the bundle at `path`, which must be the one with this `bundle_id`."""

    path: Path
    bundle_id: str
    options: RunOptions

    @classmethod
    def of(cls, opened: Opened) -> ScanWork:
        """As `opened` runs them. No worker builds an engine, or keeps an account: one process does that."""
        lean = replace(opened.options, ages=KnownAges(), audit=None, build=None, threads=opened.threads)
        return cls(opened.bundle.path, opened.bundle.id, lean)

    def __call__(self, tasks: list[Task]) -> list[Done]:
        opened = _keep("bundle", self, self._open)
        log = _Lines()
        jobs = [Job(task.scan, opened.stages(task.out), log, task.age) for task in tasks]
        heads = opened.preparer is not None
        executor = Executor(opened.threads, opened.batch, heads, self.options.max_voxels, threading.Event())
        results = dict(executor.run(jobs, len(jobs)))
        engine = tuple(
            sorted((key, value) for key, value in opened.backend().items() if isinstance(value, str))
        )
        lines = log.lines()
        return [Done(results[n], lines if n == 0 else (), engine) for n in range(len(tasks))]

    def _open(self) -> Opened:
        bundle = load_bundle(self.path)
        if bundle.id != self.bundle_id:
            raise BundleError(
                f"{self.path.name}: another bundle than the one that the run was started with.",
                "Leave it as it is while a run goes on, and run the same command again.",
            )
        return open_bundle(bundle, self.options)


@dataclass(frozen=True)
class HeadWork:
    """Heads of hz-prepare into the folder `out`."""

    out: Path
    preparation: Preparation
    overwrite: bool

    def __call__(self, tasks: list[Task]) -> list[Done]:
        preparer = _keep("preparer", self.preparation, lambda: Preparer.opened(self.preparation))
        log = _Lines()
        heads = HeadFolder(self.out, preparer, log, self.overwrite)
        return [Done(heads.prepare(task.scan), log.lines()) for task in tasks]


def _keep(kind: str, what: Any, opening: Any) -> Any:
    """What was opened for `what` in this process, opened now where that was something else."""
    with _lock:
        before, opened = _kept.get(kind, (None, None))
        if before != what:
            if opened is not None and hasattr(opened, "close"):
                opened.close()
            opened = opening()
            _kept[kind] = what, opened
        return opened


class _Lines(RunLog):
    """A log in memory: one process alone writes the file."""

    def __init__(self) -> None:
        super().__init__(Path())
        self._lines: list[str] = []

    def write(self, text: str) -> None:
        with self._lock:
            self._lines.append(text)

    def lines(self) -> tuple[str, ...]:
        """Those since the last call."""
        with self._lock:
            lines, self._lines = tuple(self._lines), []
            return lines
