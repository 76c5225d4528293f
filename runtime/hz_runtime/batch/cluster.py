"""Dask workers, started here or running already, and work done on them whatever becomes of single workers.

What the work is, `cluster_work` knows. Workers must see the files that this process sees, under the same
names, and have the same version of hz.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar
from uuid import uuid4

from hz_runtime.batch.stop import deadline
from hz_runtime.batch.worker_processes import own_environment, start_importing
from hz_runtime.cpus import usable_cpus
from hz_runtime.errors import HzError, UsageError

T = TypeVar("T")
R = TypeVar("R")
_PATIENCE = 0.5  # seconds that a wait for results lasts before it looks whether the run is to end
_CONNECT = 30  # seconds to wait for a scheduler
_REVIVAL = 120  # seconds in which a worker of this machine that was lost is started again
_JOBS = 10  # of Slurm, where no number is given
_TURNS = 2  # of every worker, at least, that are left whenever a chunk is cut
_HERE = {
    "distributed.scheduler.worker-saturation": 1.0,  # what waits at a worker is suspect, too, when it dies
    "distributed.comm.timeouts.connect": f"{_CONNECT}s",
    # After 15 s Dask would give up a worker for good that was lost, while a busy machine starts it again.
    "distributed.deploy.lost-worker-timeout": f"{_REVIVAL}s",
    # It makes glibc give all large memory back at once: a process that works on one volume after the other
    # then waits for the system to hand it empty pages.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    # What Dask looks at for its own pages, many times a second in every process.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.logging.distributed": "error",
}


class Cluster:
    """Workers behind a client of distributed."""

    def __init__(self, client: Future[Any], patience: float = math.inf) -> None:
        """patience : seconds without any worker after which a run is given up."""
        self._awaited, self._patience = client, patience

    @classmethod
    @contextmanager
    def opened(cls, text: str) -> Iterator[Cluster]:
        """The workers that "ADDRESS", "local", "local:N", "slurm" or "slurm:N" names, as long as it lasts.

        Those that are started for it end with it; those of this machine start meanwhile, and are waited for
        when they are needed. Raises UsageError for another text, or where distributed (for slurm
        dask-jobqueue) is not installed; HzError where the scheduler cannot be reached.
        """
        found = re.fullmatch(r"(local|slurm)(?::([1-9][0-9]{0,4}))?", text)
        if not found and not re.fullmatch(r"\w+://\S+|(?!(local|slurm)\b)[^\s:]+:\d+", text):
            raise UsageError(
                f"--dask {text}: neither the address of a scheduler, nor local[:N], nor slurm[:N].",
                "For this machine:  --dask local:4",
            )
        kind, number = (found[1], int(found[2] or 0)) if found else ("", 0)
        settings = dict(_HERE)
        if kind == "local":  # now, so that they import distributed while this process does
            settings["distributed.worker.multiprocessing-method"] = start_importing()
        try:
            import dask
            import distributed
        except ImportError as error:
            raise UsageError(
                "--dask needs distributed, which this environment does not have.",
                "pip install 'hz-mri[dask]'",
            ) from error
        # Dask would import all that its own workers may need here first, pandas for one.
        distributed.utils._forkserver_preload_set = True
        logging.getLogger("distributed").setLevel(logging.ERROR)  # a worker that dies is said by what is lost

        def connect() -> Any:
            where: Any = text
            if found:
                where = held.enter_context(_local(number) if kind == "local" else _slurm(number))
            try:
                client = distributed.Client(where, timeout=_CONNECT, set_as_default=False)
            except OSError as error:
                raise HzError(
                    f"no Dask scheduler answers at {text}.", "Check the address, and that it runs."
                ) from error
            return held.enter_context(client)

        # The thread is waited for before what it holds is closed.
        with dask.config.set(settings), ExitStack() as held, ThreadPoolExecutor(1, "hz-workers") as starter:
            client = starter.submit(connect)
            if kind != "local":
                client.result()
            yield cls(client, _REVIVAL if kind == "local" else math.inf)

    @cached_property
    def _client(self) -> Any:
        client = self._awaited.result()
        self._seen = time.monotonic()  # when there was a worker
        return client

    @property
    def threads(self) -> int:
        """Of all workers that are there now, 1 or more."""
        threads: dict[str, int] = self._client.nthreads()
        return max(1, sum(threads.values()))

    def each(
        self,
        items: Iterable[T],
        work: Callable[[list[T]], list[R]],
        total: int,
        most: int,
        stop: threading.Event,
    ) -> Iterator[tuple[T, R | None]]:
        """Every item with what `work` returns for it, as chunks are done; no more are begun after `stop`.

        work : of a list of items, a list as long; done again where a worker was lost with it.
        total : number of items.  most : in a chunk; towards the end there are fewer, so that all workers
        are done at about the same time.
        An item that ends its worker process whenever it is alone there has None: chunks that their workers
        did not survive are taken apart after all others are done. Raises HzError where work raises.
        """
        todo, suspects, left = iter(items), list[T](), total
        pending: dict[Any, list[T]] = {}
        while True:
            while not stop.is_set() and len(pending) < self.threads + 1 + self.threads // 2:
                chunk = min(most, max(1, left // (_TURNS * self.threads)))
                if not (some := list(islice(todo, chunk))):
                    break
                left -= len(some)
                pending[self._submit(work, some)] = some
            if not pending:
                break
            if time.monotonic() > deadline(stop):
                self._client.cancel(list(pending))
                return
            for future in self._done(list(pending)):
                some = pending.pop(future)
                try:
                    yield from zip(some, self._result(future), strict=True)
                except _Killed:
                    suspects += some
                except _Lost:
                    pending[self._submit(work, some)] = some
        yield from self._alone(suspects, work, stop)

    def _alone(
        self, items: list[T], work: Callable[[list[T]], list[R]], stop: threading.Event
    ) -> Iterator[tuple[T, R | None]]:
        """The same for items that are suspect, one after the other with nothing else on the workers."""
        left = list(items)
        while left and not stop.is_set():
            future = self._submit(work, left[:1])
            while not self._done([future]):
                if time.monotonic() > deadline(stop):
                    return
            try:
                yield left[0], self._result(future)[0]
            except _Killed:
                yield left[0], None
            except _Lost:
                continue
            left.pop(0)

    def _submit(self, work: Callable[[list[T]], list[R]], items: list[T]) -> Any:
        return self._client.submit(work, items, key=f"hz-{uuid4().hex}", pure=False)

    def _done(self, futures: list[Any]) -> list[Any]:
        """Those of the futures that are done, after a short wait for the first."""
        from distributed import wait

        try:
            with self._client.as_current():
                done = list(wait(futures, timeout=_PATIENCE, return_when="FIRST_COMPLETED").done)
            self._seen = time.monotonic()
            return done
        except TimeoutError:
            if self._client.nthreads():
                self._seen = time.monotonic()
            elif time.monotonic() - self._seen > self._patience:
                raise HzError(
                    "all Dask workers were lost, and none came back.", "The same command goes on from here."
                ) from None
            return []

    def _result(self, future: Any) -> list[Any]:
        """What a future that is done gives. Raises _Killed, _Lost, and HzError where the work raised."""
        from distributed import KilledWorker

        try:
            if future.status == "lost":  # the worker that held the result was, before it was fetched
                raise _Lost
            result: list[Any] = future.result()
            return result
        except (HzError, _Lost):
            raise
        except KilledWorker as error:
            raise _Killed from error
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise HzError(
                f"a Dask worker could not do its work: {what}.",
                "Workers need the same hz, and see the same files. The same command goes on from here.",
            ) from error


class _Killed(Exception):
    """Workers were lost with the same work, one after the other, until the scheduler gave it up."""


class _Lost(Exception):
    """A result was lost with the worker that held it."""


def _local(number: int) -> Any:
    """Processes of one thread each on this machine; `number` 0: one for each CPU."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=number or usable_cpus(),
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",  # its own port may be another cluster's; nobody else's to look at
        memory_limit=0,  # hz bounds its own; a nanny that kills at a limit would blame the scan
        silence_logs=logging.CRITICAL,  # on a busy machine even an ordinary end looks like an error to some
        env=own_environment(),
    )


def _slurm(number: int) -> Any:
    """Jobs as ~/.config/dask/jobqueue.yaml describes them."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise UsageError(
            "--dask slurm needs dask-jobqueue, which this environment does not have.",
            "pip install 'hz-mri[dask]'",
        ) from error
    try:
        cluster = SLURMCluster()
    except ValueError as error:  # no cores or memory given
        raise UsageError(
            f"dask-jobqueue does not know what a job is: {error}",
            "Say so in ~/.config/dask/jobqueue.yaml, under jobqueue: slurm:",
        ) from error
    cluster.scale(jobs=number or _JOBS)
    return cluster
