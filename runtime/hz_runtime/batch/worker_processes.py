"""How worker processes of this machine come about: forked from one that has imported what all of them need.

That one has a single thread and has opened no network: threads of engines would not outlive a fork. Where
there is none (not Linux), every worker imports all for itself.
"""

from __future__ import annotations

import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_IMPORTED = ["distributed", "hz_runtime.batch.cluster_work", "hz_runtime.inference.open"]
_ONE_CORE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # as Dask's nanny sets them


def start_importing() -> str:
    """Have imports begin in a process of their own; how Dask's nannies are to start workers, in Dask's word.

    Where workers were started so before, nothing begins: the process is there. Workers that are forked from
    it take no heed of Ctrl-C, which a terminal sends to all of them: they end with the process that asks.
    """
    if sys.platform != "linux":
        return "spawn"
    # Python 3.11 does not hand its path to that process, which might then find another hz, or none.
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    one_core = {name: os.environ.get(name, "1") for name in _ONE_CORE}
    multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    multiprocessing.resource_tracker.ensure_running()  # it would end the mask
    with _environment({**one_core, "PYTHONPATH": path}):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return "forkserver"


def own_environment() -> dict[str, str]:
    """What a worker takes over of this process, as one that is not forked does: the process it is forked from
    may be of before a change of them. PYTHONPATH is set back: programs that it starts are not hz's."""
    return {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
