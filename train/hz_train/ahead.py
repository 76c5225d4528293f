"""Batches made ahead: numpy prepares the next step's while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hz_train.fit import Run

F32 = NDArray[np.float32]


class Ahead:
    """arrays : (epoch, step) to that step's arrays, a pure function.  steps : epoch to its length."""

    def __init__(
        self, arrays: Callable[[int, int], tuple[F32, ...]], steps: Callable[[int], int], run: Run
    ) -> None:
        self.arrays, self.steps, self.run = arrays, steps, run
        self.pool = ThreadPoolExecutor(1)
        self.next: tuple[tuple[int, int], Future[tuple[F32, ...]]] | None = None

    def take(self, epoch: int, index: int) -> list[Tensor]:
        """The tensors of this step, on the device; starts on those of the one after it."""
        if self.next is not None and self.next[0] == (epoch, index):
            arrays = self.next[1].result()
        else:
            arrays = self.arrays(epoch, index)
        after = (epoch, index + 1) if index + 1 < self.steps(epoch) else (epoch + 1, 0)
        self.next = after, self.pool.submit(self.arrays, *after)
        return [self.run.put(array) for array in arrays]
