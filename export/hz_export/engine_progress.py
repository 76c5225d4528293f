"""A build that shows how far it is, and ends when it is told to.

TensorRT reports nested phases from its own threads. The build runs in a thread of ours, so that Ctrl-C, which
Python delivers to the main thread, finds it waiting and not inside TensorRT: there a KeyboardInterrupt would
cross C++ and end the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Phases:
    """How far nested phases are, as one number that never falls. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, list[Any]] = {}  # phase -> [parent, steps, steps done]
        self._most = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._open[phase] = [parent, max(1, steps), 0]

    def step(self, phase: str, index: int) -> float:
        """Note a finished step (from 0); how much of all is done, 0 to 1."""
        with self._lock:
            if phase in self._open:
                self._open[phase][2] = index + 1
            roots = [name for name, (parent, *_) in self._open.items() if parent not in self._open]
            self._most = max(self._most, min(1.0, sum(map(self._done, roots)) / max(1, len(roots))))
            return self._most

    def finish(self, phase: str) -> None:
        with self._lock:
            self._open.pop(phase, None)

    def _done(self, phase: str) -> float:
        _, steps, done = self._open[phase]
        inside = [self._done(name) for name, (parent, *_) in self._open.items() if parent == phase]
        return float(min(steps, done + min(1.0, sum(inside))) / steps)


def new_monitor(trt: Any, shown: Callable[[float], None], stopped: Callable[[], bool]) -> Any:
    """A TensorRT progress monitor: tells `shown` what is done (0 to 1), stops once `stopped()` is true."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            shown(self.phases.step(phase_name, step))
            return not stopped()

        def phase_finish(self, phase_name: str) -> None:
            self.phases.finish(phase_name)

    return Monitor()


def run_stoppable(work: Callable[[Callable[[], bool]], T], stop: threading.Event | None) -> T:
    """`work(stopped)` in a thread; Ctrl-C or `stop` make `stopped()` true. Raises what it raised, and
    KeyboardInterrupt once it has ended after Ctrl-C."""
    interrupted, ended = threading.Event(), threading.Event()
    made: list[T] = []
    failed: list[BaseException] = []

    def stopped() -> bool:
        return interrupted.is_set() or (stop is not None and stop.is_set())

    def target() -> None:
        try:
            made.append(work(stopped))
        except BaseException as error:  # handed to the thread that waits
            failed.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=target, name="hz-engine")
    thread.start()
    while not ended.is_set():  # Thread.join, interrupted, takes a running thread for an ended one (3.11)
        try:
            ended.wait(0.1)
        except KeyboardInterrupt:
            interrupted.set()
    thread.join()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if failed:
        raise failed[0]
    return made[0]
