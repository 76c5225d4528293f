"""hz-run.log: what a run did, in time order. The only place for a traceback."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

LOG_NAME = "hz-run.log"


class RunLog:
    """Appended to by any thread, and never in the way: a full disk must not stop a run.

    held : lines wait for `release`, and are lost without it: a run that changes nothing leaves no line.
    """

    def __init__(self, path: Path, *, held: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._waiting: list[bytes] | None = [] if held else None

    def write(self, text: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = f"{stamp} {text.rstrip()}\n".encode("utf-8", "backslashreplace")
        with self._lock:
            if self._waiting is None:
                self._append(line)
            else:
                self._waiting.append(line)

    def release(self) -> None:
        """Write the lines that wait; from here on lines are written as they come."""
        with self._lock:
            if self._waiting:
                self._append(b"".join(self._waiting))
            self._waiting = None

    @property
    def held(self) -> bool:
        """Whether lines still wait: nothing was worth writing so far."""
        return self._waiting is not None

    def _append(self, data: bytes) -> None:
        with suppress(OSError), open(self._path, "ab") as file:
            file.write(data)
