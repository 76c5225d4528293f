"""The first scan of a run, read and brought onto the network's grid while the networks are opened.

Both take as long, on a core each; a user with one scan waits for the longer one alone. What the networks make
of the scan, and whatever is wrong with it, is not seen here: who finds nothing ready does it again, and says.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.batch.beside import Beside
from hz_runtime.batch.brain import Brain, brain_of
from hz_runtime.io.volume import ReadLimits, read_volume
from hz_runtime.model_space.recipe import Recipe

if TYPE_CHECKING:
    from hz_runtime.batch.inputs import InputScan
    from hz_runtime.bundle.store import Bundle


class FirstScan:
    """A stripped scan that a thread of its own has begun with.  limits : of the file; None for the usual."""

    def __init__(self, scan: InputScan, bundle: Bundle, limits: ReadLimits | None = None) -> None:
        self._path: Path | None = scan.path
        self._lock = threading.Lock()

        def begin() -> Brain:
            scan.check()
            recipe = Recipe.from_dict(dict(bundle.recipe))
            return brain_of(read_volume(scan.path, limits), recipe, bundle.statistics)

        self._beside = Beside(begin, "hz-first-scan")

    def take(self, path: Path) -> Brain | None:
        """What is ready of the scan at `path`, once, as soon as it is; None of another scan or where it
        failed."""
        with self._lock:
            if path != self._path:
                return None
            self._path = None
        with suppress(Exception):
            return self._beside.result()
        return None

    def wait(self) -> None:
        """Until nothing is at work here."""
        self._beside.wait()
