"""An executor whose threads are those of a cluster's workers: what a run takes in the place of `Executor`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace

from hz_runtime.batch.cluster import Cluster
from hz_runtime.batch.cluster_work import Done, ScanWork, Task
from hz_runtime.batch.executor import Job
from hz_runtime.batch.opened import Opened
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult, Status

MOST_A_CHUNK = 8  # scans that are lost, and found done again, where a worker is
KILLED = (
    "its worker process ended every time, also when it had no other scan: it takes more memory than there "
    "is, or a library crashes on it; run it alone to see."
)


class ClusterExecutor:
    """Runs jobs on the workers of a cluster, which open what is `opened` here for themselves.

    notes : after the run, what is to be known of the workers' engines.
    """

    def __init__(self, cluster: Cluster, opened: Opened, stop: threading.Event) -> None:
        self._cluster, self._opened, self._stop = cluster, opened, stop
        self._engines: set[tuple[tuple[str, str], ...]] = set()

    def run(self, jobs: Iterable[Job], total: int) -> Iterator[tuple[int, ScanResult]]:
        """As `Executor.run`."""
        taken: dict[int, tuple[Job, bool]] = {}  # on their way: the job, and whether it was done before
        numbered = enumerate(jobs)

        def tasks() -> Iterator[Task]:
            for index, job in numbered:
                if job.begun is not None:
                    job.begun()
                taken[index] = job, (job.stages.out / job.stages.names.record(job.scan)).exists()
                yield Task(index, job.scan, job.stages.out, job.age)

        work = ScanWork.of(self._opened)
        for task, done in self._cluster.each(tasks(), work, total, MOST_A_CHUNK, self._stop):
            job, before = taken.pop(task.index)
            yield task.index, self._result(job, before, done)
        left = {index: job for index, (job, _) in taken.items()} | dict(numbered)
        for index, job in sorted(left.items()):
            yield index, ScanResult(job.scan.label, job.scan.name, "skipped", NOT_REACHED)

    def _result(self, job: Job, before: bool, done: Done | None) -> ScanResult:
        if done is None:
            result = ScanResult(job.scan.label, job.scan.name, "failed", KILLED, age=job.age)
            job.log.write(f"{result.input}: failed: {KILLED}")
            return result
        if done.engine:
            self._engines.add(done.engine)
        result = done.result
        if result.status in ("ok", "flagged"):
            job.log.release()
        for line in done.lines:
            job.log.write(line)
        if result.recorded and not before:
            # Its worker was lost after it was done: this run did it, all the same.
            status: Status = "flagged" if result.recorded == "flagged" else "ok"
            result = replace(result, status=status, recorded="", reason="; ".join(result.flags))
        return result

    def notes(self) -> list[str]:
        """A line where workers ran other engines than this process would, or than each other."""
        own = {key: value for key, value in self._opened.backend().items() if isinstance(value, str)}
        others = self._engines - {tuple(sorted(own.items()))}
        return [
            "workers ran {name} {version} ({precision}) on {device}".format(**dict(engine))
            for engine in sorted(others)
        ]
