"""hz-run.log: what a run did, in time order. The only place for a traceback."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

LOG_NAME = "hz-run.log"


class RunLog:
    """Appended to by any thread, and never in the way: a full disk must not stop a run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._lock, suppress(OSError), open(self._path, "ab") as file:
            file.write(f"{stamp} {text.rstrip()}\n".encode("utf-8", "backslashreplace"))
