"""Batches made ahead: numpy prepares the next steps' while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hz_runtime.cpus import usable_cpus
from hz_train.fit import Run

F32 = NDArray[np.float32]
MOST = 8  # steps made at once: as many batches lie in memory


class Ahead:
    """arrays : (epoch, step) to that step's arrays, a pure function.  steps : epoch to its length.

    One CPU takes several times as long over a step's simulated scanners as a GPU over the step, so that for a
    GPU several steps are made at once. On a CPU the networks need the others themselves.
    """

    def __init__(
        self, arrays: Callable[[int, int], tuple[F32, ...]], steps: Callable[[int], int], run: Run
    ) -> None:
        self.arrays, self.steps, self.run = arrays, steps, run
        spare = 1 if run.device.type == "cpu" else usable_cpus() // run.world - 1
        self.workers = min(MOST, max(1, spare))
        self.pool = ThreadPoolExecutor(self.workers)
        self.made: dict[tuple[int, int], Future[tuple[F32, ...]]] = {}

    def take(self, epoch: int, index: int) -> list[Tensor]:
        """The tensors of this step, on the device; starts on those of the ones after it."""
        at = epoch, index
        wanted = [at]
        while len(wanted) <= self.workers:
            wanted.append(self._after(*wanted[-1]))
        self.made = {step: self.made.get(step) or self.pool.submit(self.arrays, *step) for step in wanted}
        return [self.run.put(array) for array in self.made.pop(at).result()]

    def _after(self, epoch: int, index: int) -> tuple[int, int]:
        return (epoch, index + 1) if index + 1 < self.steps(epoch) else (epoch + 1, 0)
