"""How a run is asked to end early: by a threading.Event, or by a `Stop` that also says by when."""

from __future__ import annotations

import math
import threading
import time


class Stop(threading.Event):
    """An event that may set a time by which the run has to have let go of everything.

    A scheduler that sends SIGTERM kills half a minute later: what cannot be finished before is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.deadline = math.inf

    def within(self, seconds: float) -> None:
        """Ask the run to end, and not to wait longer than that for scans in flight."""
        self.deadline = time.monotonic() + seconds
        self.set()


def deadline(stop: threading.Event) -> float:
    """By when (time.monotonic) a run has to end; infinity where it may finish what is in flight."""
    return stop.deadline if isinstance(stop, Stop) else math.inf
