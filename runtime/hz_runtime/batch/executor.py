"""The threads and queues of a run: read -> prepare -> infer -> write, overlapping, in bounded memory.

Each stage has its own threads and a short queue before it, so that decoding, arithmetic and encoding
overlap; numpy, the engines and igzip release the GIL. A bound on the voxels in flight keeps memory flat
whatever the number or size of scans.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Queue, SimpleQueue
from typing import Literal

from hz_runtime.batch.failures import failure
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.log import RunLog
from hz_runtime.batch.stages import Job, Stages
from hz_runtime.results.scan_result import NOT_REACHED, STAGES, ScanResult

VOXELS_A_SCAN = 256**3
MOST_HEADS = 16  # prepared at a time; each takes about 0.5 GB


@dataclass(frozen=True)
class Event:
    """Something to show: kind "start" (total known), "note" (text), or "scan" (result)."""

    kind: Literal["start", "note", "scan"]
    text: str = ""
    result: ScanResult | None = None
    done: int = 0
    total: int = 0


class Budget:
    """Voxels in flight. One scan larger than the bound passes when it is alone.

    A scan counts once it is read: while readers wait here, each holds one more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._free = threading.Condition()

    def take(self, voxels: int) -> None:
        with self._free:
            self._free.wait_for(lambda: self._used == 0 or self._used + voxels <= self._limit)
            self._used += voxels

    def give(self, voxels: int) -> None:
        with self._free:
            self._used -= voxels
            self._free.notify_all()


class Executor:
    """The threads and queues of one run.

    Readers take scans in order; an end mark (None) follows the last job through every queue, once for each
    thread of the stage after it. No thread ever dies of a scan: everything a step raises becomes a result.
    """

    def __init__(
        self,
        stages: Stages,
        threads: int,
        max_voxels: int | None,
        ages: KnownAges,
        log: RunLog,
        emit: Callable[[Event], None],
        stop: threading.Event,
    ) -> None:
        self._stages, self._ages, self._log, self._emit, self._stop = stages, ages, log, emit, stop
        few = min(4, max(1, threads // 4))
        self._workers = {
            "read": few,
            # A raw head keeps one core busy for seconds, most of them in programs of its own.
            "prepare": few if stages.preparer is None else min(MOST_HEADS, threads),
            "infer": 1,
            "write": min(8, max(1, threads // 2)),
        }
        self._budget = Budget(max_voxels or max(4, threads) * VOXELS_A_SCAN)
        self._results: SimpleQueue[tuple[int, ScanResult]] = SimpleQueue()

    def run(self, scans: Sequence[InputScan]) -> tuple[ScanResult, ...]:
        """Results of all `scans`, in their order."""
        self._todo = iter(enumerate(scans))
        self._todo_lock = threading.Lock()
        self._left = dict(self._workers)
        self._queues: dict[str, Queue[Job | None]] = {
            "prepare": Queue(self._workers["prepare"]),
            "infer": Queue(self._stages.batch),
            "write": Queue(self._workers["write"]),
        }
        loops = {"read": self._read, "prepare": self._prepare, "infer": self._infer, "write": self._write}
        for stage, number in self._workers.items():
            for n in range(number):
                threading.Thread(target=loops[stage], name=f"hz-{stage}-{n}", daemon=True).start()
        results: dict[int, ScanResult] = {}
        while len(results) < len(scans):
            index, result = self._next_result()
            results[index] = result
            if result.reason == NOT_REACHED:
                continue
            self._emit(Event("scan", result=result, done=len(results), total=len(scans)))
        return tuple(results[i] for i in range(len(scans)))

    def _next_result(self) -> tuple[int, ScanResult]:
        while True:  # a wait without end would also keep signal handlers waiting on some systems
            with suppress(Empty):
                return self._results.get(timeout=0.5)

    def _finish(self, job: Job, result: ScanResult) -> None:
        job.drop()
        if job.voxels:
            self._budget.give(job.voxels)
            job.voxels = 0
        text = f"{result.input}: {result.status}"
        self._log.write(f"{text}: {result.reason}" if result.reason else text)
        self._results.put((job.index, result))

    def _fail(self, job: Job, error: BaseException) -> None:
        reason, trace = failure(error, job.scan, self._stages.out)
        if trace:
            self._log.write(f"{job.scan.label}: {trace}")
        scan = job.scan
        self._stages.withdraw(scan, error)
        gates = tuple(getattr(error, "gates", ())) or job.gates
        self._finish(
            job,
            ScanResult(
                scan.label, scan.name, "failed", reason, age=job.age, seconds=dict(job.seconds), gates=gates
            ),
        )

    @contextmanager
    def _timed(self, stage: str, *jobs: Job) -> Iterator[None]:
        clock = time.perf_counter()
        try:
            yield
        finally:
            for job in jobs:
                job.seconds[stage] = (time.perf_counter() - clock) / len(jobs)

    def _end(self, stage: str) -> None:
        """The last thread of a stage to end tells every thread of the next one."""
        with self._todo_lock:
            self._left[stage] -= 1
            last = self._left[stage] == 0
        following = STAGES[STAGES.index(stage) + 1 :][:1]
        if last and following:
            for _ in range(self._workers[following[0]]):
                self._queues[following[0]].put(None)

    def _read(self) -> None:
        while True:
            with self._todo_lock:
                index, scan = next(self._todo, (-1, None))
            if scan is None:
                break
            job = Job(index, scan)
            if self._stop.is_set():
                self._results.put((index, ScanResult(scan.label, scan.name, "skipped", NOT_REACHED)))
                continue
            try:
                job.age = self._ages.of(scan)
                with self._timed("read", job):
                    before = self._stages.read(job)
            except Exception as error:
                job.voxels = 0
                self._fail(job, error)
                continue
            if before is not None:
                self._finish(job, before)
                continue
            self._budget.take(job.voxels)
            self._queues["prepare"].put(job)
        self._end("read")

    def _prepare(self) -> None:
        while (job := self._queues["prepare"].get()) is not None:
            try:
                with self._timed("prepare", job):
                    self._stages.prepare(job)
            except Exception as error:
                self._fail(job, error)
            else:
                self._queues["infer"].put(job)
            del job  # or this thread would keep the scan while it waits for the next one
        self._end("prepare")

    def _infer(self) -> None:
        ended = False
        while not ended:
            jobs, ended = self._waiting()
            done = self._infer_batch(jobs) if jobs else []
            for job in done:
                self._queues["write"].put(job)
            jobs = done = []
            job = None  # type: ignore[assignment]
        self._end("infer")

    def _waiting(self) -> tuple[list[Job], bool]:
        """Jobs that wait, at least one and at most a batch; and whether the last one was seen."""
        queue = self._queues["infer"]
        first = queue.get()
        jobs: list[Job] = []
        while first is not None:
            jobs.append(first)
            if len(jobs) == self._stages.batch:
                return jobs, False
            try:
                first = queue.get_nowait()
            except Empty:
                return jobs, False
        return jobs, True

    def _infer_batch(self, jobs: list[Job]) -> list[Job]:
        """Those of `jobs` that went through; where a batch fails, its scans are tried one by one."""
        try:
            with self._timed("infer", *jobs):
                self._stages.infer(jobs)
            return jobs
        except Exception as error:
            if len(jobs) > 1:
                return [job for single in jobs for job in self._infer_batch([single])]
            self._fail(jobs[0], error)
            return []

    def _write(self) -> None:
        while (job := self._queues["write"].get()) is not None:
            try:
                with self._timed("write", job):
                    result = self._stages.write(job)
            except Exception as error:
                self._fail(job, error)
            else:
                self._finish(job, result)
            del job
        self._end("write")
