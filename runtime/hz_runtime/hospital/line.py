"""The line of series that are on their way through the bridge, of bounded length.

One thread lets them in, another one out. What is done with them is the bridge's.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from hz_runtime.hospital.journal import Entry

_PATIENCE = 0.2  # seconds between two looks at whether the line still goes on


class Line:
    """At most `places` series, each known by the folder that its results go to.

    stop : ends it.  moved : whether any series had its turn.
    """

    def __init__(self, places: int, stop: threading.Event) -> None:
        self._free = threading.Semaphore(places)
        self._stop, self._closed = stop, threading.Event()
        self._entries: dict[Path, tuple[Entry, float]] = {}
        self.moved = False

    def wait(self) -> bool:
        """Wait for a free place, which is the caller's then; False where the line has ended."""
        while not (self._stop.is_set() or self._closed.is_set()):
            if self._free.acquire(timeout=_PATIENCE):
                return True
        return False

    def enter(self, out: Path, entry: Entry, started: float) -> None:
        """Put a series into the place that was waited for.  started : time.perf_counter() of its turn."""
        self._entries[out] = entry, started

    def series(self) -> set[str]:
        """Orthanc's names of the series in the line."""
        return {entry.id for entry, _ in list(self._entries.values())}

    def at(self, out: Path) -> tuple[Entry, float]:
        """A series of the line, and the seconds since its turn came."""
        entry, started = self._entries[out]
        return entry, time.perf_counter() - started

    def leave(self, out: Path) -> None:
        """Let a series out, and its place be free."""
        del self._entries[out]
        self._free.release()

    def close(self) -> None:
        """Nothing more is let in."""
        self._closed.set()
