"""What every command that works through a batch of scans does before it starts."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hz_runtime.batch.cluster import Cluster
    from hz_runtime.batch.stop import Stop

GRACE = 20  # of the 30 seconds that Slurm (KillWait) and most others give; the rest is for the report


def one_core_each() -> None:
    """Keep each scan's linear algebra to one core, as several scans are worked on at once.

    Must be called before numpy is imported. What the environment says does not count: OpenBLAS sums in
    another order on two cores, and results would differ in their last bits under a scheduler that sets it, as
    Snakemake does.
    """
    threads_each(1)


def threads_each(threads: int) -> None:
    """The same with another number."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)


@contextmanager
def dask_workers(text: str | None) -> Iterator[Cluster | None]:
    """The workers that `options.dask` names; None where it was not given."""
    if text is None:
        yield None
        return
    from hz_runtime.batch.cluster import Cluster

    with Cluster.opened(text) as cluster:
        yield cluster


def stop_on_signals(quiet: bool) -> Stop:
    """An event that the first SIGINT or SIGTERM sets; the second one ends the process at once.

    A scheduler that sends SIGTERM kills soon after: scans that are not done in GRACE seconds are left out.
    """
    from hz_runtime.batch.stop import Stop

    stop = Stop()

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(130)
        if number == signal.SIGTERM:
            stop.within(GRACE)
        else:
            stop.set()
        if not quiet:
            # os.write: print may be in the middle of a line that this handler interrupted
            with suppress(OSError):  # who read it may have been ended by the same Ctrl-C
                os.write(2, b"\nstopping after the scans in flight; once more ends at once\n")

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)
    return stop
