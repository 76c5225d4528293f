"""The threads and queues of a run: read -> prepare -> infer -> write, overlapping, in bounded memory.

Where a scan's results go, its `Job` says: scans of several folders may be on their way at once.

Each stage has its own threads and a short queue before it, so that decoding, arithmetic and encoding
overlap; numpy, the engines and igzip release the GIL. A bound on the scans in flight (`budget`) keeps memory
flat whatever their number or size.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue, SimpleQueue
from typing import Any, Literal, TypeVar

from hz_runtime.batch.budget import VOXELS_A_SCAN, Budget
from hz_runtime.batch.failures import failure, scrub
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.log import LOG_NAME, RunLog
from hz_runtime.batch.scan_stages import InferredScan, PreparedScan, ReadScan, Ticket
from hz_runtime.batch.stages import Stages
from hz_runtime.batch.stop import deadline
from hz_runtime.errors import HzError
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

MOST_HEADS = 16  # prepared at a time; each takes about 0.5 GB
_PATIENCE = 0.5  # seconds that a thread waits before it looks whether the run still goes on
T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """Something to show: kind "start" (total known), "note" (text), or "scan" (result; text: of DICOM, the
    archive or folder that it came from, which no file names)."""

    kind: Literal["start", "note", "scan"]
    text: str = ""
    result: ScanResult | None = None
    done: int = 0
    total: int = 0


@dataclass(frozen=True, eq=False)
class Job:
    """A scan to be done.  stages : over its own output folder.  log : of that folder's run.

    age : known age of its person in years, or None.  begun : called when its turn comes, by any thread.
    """

    scan: InputScan
    stages: Stages
    log: RunLog
    age: float | None = None
    begun: Callable[[], None] | None = None


class Executor:
    """The threads and queues of one run.

    Readers take jobs in order; an end mark (None) follows the last scan through every queue, once for each
    thread of the stage after it. No thread dies of a scan: every Exception that a step raises becomes a
    result. Where one dies of something else, all others end too, and so does the run, with an error.

    heads : the scans are raw heads.  batch : scans a network call.  stop : see `run_batch`.
    """

    def __init__(
        self, threads: int, batch: int, heads: bool, max_voxels: int | None, stop: threading.Event
    ) -> None:
        self._batch, self._stop = batch, stop
        few = min(4, max(1, threads // 4))
        self._workers = {
            "read": few,
            # A raw head keeps one core busy for seconds, most of them in programs of its own.
            "prepare": min(MOST_HEADS, threads) if heads else few,
            "infer": 1,
            "write": min(8, max(1, threads // 2)),
        }
        # One for each hand that works on it: a scan that only waits takes memory and saves no time. Batches
        # gather while one runs.
        hands = self._workers["prepare"] + self._workers["write"] + 2 * batch - 1
        self._budget = Budget(max_voxels or max(4, threads) * VOXELS_A_SCAN, hands)
        self._results: SimpleQueue[tuple[int, ScanResult] | None] = SimpleQueue()
        self._to_prepare: Queue[ReadScan | None] = Queue(self._workers["prepare"])
        self._to_infer: Queue[PreparedScan | None] = Queue(batch)
        self._to_write: Queue[InferredScan | None] = Queue(self._workers["write"])
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held by who asks for the next job, which may take its time
        self._left = dict(self._workers)
        self._broken = threading.Event()
        self._deaths: list[str] = []
        self._jobs: dict[int, Job] = {}  # those that are on their way
        self._last: tuple[Job, ...] = ()  # taken; none before the first
        self._taken = 0
        self._given_up = False

    def run(self, jobs: Iterable[Job], total: int | None = None) -> Iterator[tuple[int, ScanResult]]:
        """(place in `jobs`, result) of all jobs, as they come; those of scans that `stop` left out, too.

        jobs : looked at one by one, in the reading threads, when their turn comes; it may take as long as it
        likes.  total : how many there are, for messages, where that is known.
        Raises HzError where threads died and results are missing; what was written of other scans stays.
        """
        self._todo = iter(jobs)
        self._exhausted = False
        threads = self._start()
        done = 0
        while not (self._exhausted and done == self._taken):
            if time.monotonic() > deadline(self._stop):
                yield from self._abandoned()
                return
            found = self._next_result(threads, None if total is None else total - done)
            if found is not None:
                done += 1
                yield found

    def _abandoned(self) -> Iterator[tuple[int, ScanResult]]:
        """What is left when time is up: nobody waits for what still runs, and nothing more is begun."""
        self._broken.set()
        self._budget.lift()
        waiting = not self._turn.acquire(timeout=_PATIENCE)  # what is still being found is nobody's yet
        with self._lock:
            self._given_up = True
            left = dict(self._jobs)
        if not waiting:
            left.update(enumerate(self._todo, self._taken))
            self._turn.release()
        with suppress(Empty):
            while True:
                if (found := self._results.get_nowait()) is not None:
                    yield found
        for index, job in sorted(left.items()):
            yield index, _not_reached(job.scan)

    def _start(self) -> list[threading.Thread]:
        steps = {
            "read": self._read_one,
            "prepare": self._prepare_one,
            "infer": self._infer_some,
            "write": self._write_one,
        }
        threads = [
            threading.Thread(
                target=self._work, args=(stage, steps[stage]), name=f"hz-{stage}-{n}", daemon=True
            )
            for stage, number in self._workers.items()
            for n in range(number)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _next_result(
        self, threads: Sequence[threading.Thread], missing: int | None
    ) -> tuple[int, ScanResult] | None:
        """A result; None where there may be none to come, or the time may be up: look again."""
        while True:  # a wait without end would also keep signal handlers waiting on some systems
            living = any(thread.is_alive() for thread in threads)
            with suppress(Empty):
                return self._results.get(timeout=_PATIENCE if living else 0)
            if not living:
                why = "; ".join(self._deaths) or "its threads ended"
                missing = len(self._jobs) if missing is None else missing
                scans = f"{missing} scan{'' if missing == 1 else 's'}"
                raise HzError(
                    f"the run broke off with {scans} left: {why}.",
                    f"See {LOG_NAME}, and run the same command again: it goes on from here.",
                )
            if deadline(self._stop) < math.inf:
                return None

    def _work(self, stage: str, step: Callable[[], bool]) -> None:
        """A thread's whole life: `step` until it says that no scan comes any more."""
        try:
            while step():
                pass
        except BaseException as error:
            text = f"thread {threading.current_thread().name} died of {type(error).__name__}: {error}"
            trace = "".join(traceback.format_exception(error))
            with self._lock:
                folders = {job.stages.out: job.log for job in (*self._jobs.values(), *self._last)}
            for out in folders:
                text, trace = scrub(text, None, out), scrub(trace, None, out)
            self._deaths.append(text)
            self._broken.set()
            self._budget.lift()
            for log in folders.values():
                log.write(f"{text}\n{trace}")
        self._end(stage)

    def _end(self, stage: str) -> None:
        """The last thread of a stage to end leaves an end mark for every thread of the next one."""
        with self._lock:
            self._left[stage] -= 1
            last = self._left[stage] == 0
        following: dict[str, tuple[str, Queue[Any]]] = {
            "read": ("prepare", self._to_prepare),
            "prepare": ("infer", self._to_infer),
            "infer": ("write", self._to_write),
        }
        if last and stage in following:
            after, queue = following[stage]
            for _ in range(self._workers[after]):
                self._put(queue, None)

    def _get(self, queue: Queue[T | None]) -> T | None:
        """The next scan of a queue; None when no more comes, or the run broke."""
        while not self._broken.is_set():
            with suppress(Empty):
                return queue.get(timeout=_PATIENCE)
        return None

    def _put(self, queue: Queue[T | None], scan: T | None) -> None:
        while not self._broken.is_set():
            with suppress(Full):
                queue.put(scan, timeout=_PATIENCE)
                return

    @contextmanager
    def _timed(self, stage: str, *tickets: Ticket) -> Iterator[None]:
        clock = time.perf_counter()
        try:
            yield
        finally:
            for ticket in tickets:
                ticket.seconds[stage] = (time.perf_counter() - clock) / len(tickets)

    # What becomes of a scan

    def _finish(self, ticket: Ticket, result: ScanResult) -> None:
        if ticket.voxels:
            self._budget.give(ticket.voxels)
            ticket.voxels = 0
        text = f"{result.input}: {result.status}"
        self._jobs[ticket.index].log.write(f"{text}: {result.reason}" if result.reason else text)
        self._end_job(ticket.index, result)

    def _end_job(self, index: int, result: ScanResult) -> None:
        with self._lock:
            del self._jobs[index]
            if not self._given_up:
                self._results.put((index, result))

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        scan, job = ticket.scan, self._jobs[ticket.index]
        reason, trace = failure(error, scan, job.stages.out)
        result = ScanResult(
            scan.label,
            scan.name,
            "failed",
            reason,
            age=ticket.age,
            seconds=dict(ticket.seconds),
            gates=tuple(getattr(error, "gates", ())) or ticket.gates,
            quality=tuple(quality.to_dict() for quality in ticket.quality),
        )
        try:
            if trace:
                job.log.write(f"{scan.label}: {trace}")
            job.stages.withdraw(scan, error)
        except Exception as fault:
            why, _ = failure(fault, scan, job.stages.out)
            job.log.write(f"{scan.label}: results of an earlier run may be left: {why}")
        finally:  # whatever comes of clearing up, the run waits for this result
            self._finish(ticket, result)

    # One step of a thread: a scan from its queue to the next. What a step holds of a scan ends with the call,
    # so that no thread keeps one while it waits for the next.

    def _read_one(self) -> bool:
        with self._turn:
            index, job = self._taken, next(self._todo, None)
            with self._lock:
                if job is None:
                    self._exhausted = True
                else:
                    self._taken += 1
                    self._jobs[index] = job
                    self._last = (job,)
        if job is None:
            self._results.put(None)  # who waits for results may have had the last one
            return False
        if self._broken.is_set():
            return False
        ticket = Ticket(index, job.scan, job.age)
        if self._stop.is_set():
            self._end_job(index, _not_reached(job.scan))
            return True
        try:
            if job.begun is not None:
                job.begun()
            with self._timed("read", ticket):
                read = job.stages.read(ticket)
        except Exception as error:
            ticket.voxels = 0  # not taken yet
            self._fail(ticket, error)
            return True
        if isinstance(read, ScanResult):
            self._finish(ticket, read)
        else:
            self._budget.take(ticket.voxels)
            self._put(self._to_prepare, read)
        return True

    def _prepare_one(self) -> bool:
        read = self._get(self._to_prepare)
        if read is None:
            return False
        ticket = read.ticket
        stages = self._jobs[ticket.index].stages
        if stages.preparer is not None and deadline(self._stop) < math.inf:  # it might not be done in time
            self._budget.give(ticket.voxels)
            self._end_job(ticket.index, _not_reached(ticket.scan))
            return True
        try:
            with self._timed("prepare", ticket):
                prepared = stages.prepare(read)
        except Exception as error:
            self._fail(ticket, error)
            return True
        del read  # of a raw head it is another array than the brain that goes on
        self._put(self._to_infer, prepared)
        return True

    def _infer_some(self) -> bool:
        scans, ended = self._waiting()
        for inferred in self._inferred(scans) if scans else []:
            self._put(self._to_write, inferred)
        return not ended

    def _waiting(self) -> tuple[list[PreparedScan], bool]:
        """Scans that wait, at least one and at most a batch; and whether the last one was seen."""
        first = self._get(self._to_infer)
        scans: list[PreparedScan] = []
        while first is not None:
            scans.append(first)
            if len(scans) == self._batch:
                return scans, False
            try:
                first = self._to_infer.get_nowait()
            except Empty:
                return scans, False
        return scans, True

    def _inferred(self, scans: Sequence[PreparedScan]) -> list[InferredScan]:
        """Those of `scans` that went through; where a batch fails, its scans are tried one by one."""
        try:
            with self._timed("infer", *(scan.ticket for scan in scans)):
                # The networks are the same ones in every folder.
                return self._jobs[scans[0].ticket.index].stages.infer(scans)
        except Exception as error:
            if len(scans) > 1:
                return [inferred for single in scans for inferred in self._inferred([single])]
            self._fail(scans[0].ticket, error)
            return []

    def _write_one(self) -> bool:
        inferred = self._get(self._to_write)
        if inferred is None:
            return False
        ticket = inferred.ticket
        job = self._jobs[ticket.index]
        try:
            with self._timed("write", ticket):
                drawn = job.stages.draw(inferred)
                del inferred  # a big scan's voxels are not needed while it is compressed
                job.log.release()
                result = job.stages.write(drawn)
        except Exception as error:
            self._fail(ticket, error)
            return True
        del drawn
        self._finish(ticket, result)
        return True


def _not_reached(scan: InputScan) -> ScanResult:
    return ScanResult(scan.label, scan.name, "skipped", NOT_REACHED)
