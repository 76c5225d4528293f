"""Batches made ahead: numpy makes the next steps' while the device works on this one.

It knows nothing of networks or devices: arrays come out as they were made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from hz_runtime.cpus import usable_cpus

F32 = NDArray[np.float32]
Arrays = tuple[F32, ...]
MOST = 8  # steps made at once: as many batches lie in memory


def workers(device: str, processes: int) -> int:
    """How many steps are made at once beside a device of this type, in each of so many processes.

    One CPU takes several times as long over a step's simulated scanners as a GPU over the step, so that for a
    GPU several steps are made at once. On a CPU the networks need the others themselves.
    """
    spare = 1 if device == "cpu" else usable_cpus() // processes - 1
    return min(MOST, max(1, spare))


def batches_ahead(
    make: Callable[[int, int], Arrays], steps: Iterable[tuple[int, int]], workers: int
) -> Generator[Arrays, None, None]:
    """The arrays of each step in turn; those of the next `workers` steps are made meanwhile.

    make : (epoch, step) to that step's arrays, a pure function; it is called in other threads, once for each
    of `steps` and for nothing else. What it raises is raised where that step's turn comes.
    The threads end with the iterator: when it is exhausted, closed, collected, or raises.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches-ahead")
    made: deque[Future[Arrays]] = deque()
    try:
        for step in steps:
            made.append(pool.submit(make, *step))
            if len(made) > workers:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
