"""Ctrl-C in a batch: the first ends it after the scans in flight, the second at once."""

from __future__ import annotations

import os
import signal
import threading


def stop_on_signals(quiet: bool) -> threading.Event:
    """An event that the first SIGINT or SIGTERM sets; the second one ends the process at once."""
    stop = threading.Event()

    def handle(_number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()
        if not quiet:
            # os.write: print may be in the middle of a line that this handler interrupted
            os.write(2, b"\nstopping after the scans in flight; once more ends at once\n")

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)
    return stop
