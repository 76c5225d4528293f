"""What a training run says of where it is: a bar on a terminal, else a line a minute and one an epoch.

It measures nothing and decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

from hz_runtime.report.markup import duration

EVERY_S = 60.0  # between lines where there is no terminal
SHOWN = 3  # losses on the bar, which is one line
T = TypeVar("T")


def counted(
    items: Iterable[T], total: int, what: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[T]:
    """The items, with a bar on a terminal, else a line a minute: `what` is done to them, as "reading scans".

    clock : seconds.
    """
    bar = tqdm(items, total=total, desc=what, disable=None)
    said = clock()
    for done, item in enumerate(bar, 1):
        if bar.disable and done < total and clock() - said >= EVERY_S:
            said = clock()
            print(f"{what}: {done} of {total}", flush=True)
        yield item


class TrainingProgress:
    """Steps and epochs of one run.

    steps : left to do.  epochs : of the whole training.  silent : says nothing, as all processes but the
        first.  clock : seconds.
    """

    def __init__(
        self, steps: int, epochs: int, *, silent: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # disable=None: none where standard error is no terminal
        self._bar: Any = tqdm(total=steps, unit="step", disable=True if silent else None, smoothing=0.05)
        self._lines = bool(self._bar.disable) and not silent
        self._steps, self._epochs, self._clock = steps, epochs, clock
        self._done = 0
        self._began = self._said = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.close()

    def step(self, epoch: int, index: int, count: int, losses: Callable[[], Mapping[str, float]]) -> None:
        """Step `index` of the `count` of an epoch was done, both from 0.

        losses : their means so far in the epoch; called once a minute, since a GPU has to be waited for.
        """
        self._done += 1
        self._bar.update()
        if self._lines and index + 1 < count and self._clock() - self._said >= EVERY_S:
            self._say(f"epoch {epoch + 1} of {self._epochs}, step {index + 1} of {count}", losses())

    def epoch(self, epoch: int, losses: Mapping[str, float]) -> None:
        """An epoch, counted from 0, was done, with these mean losses."""
        if self._lines:
            self._say(f"epoch {epoch + 1} of {self._epochs}", losses)
        shown = {name: f"{mean:.3f}" for name, mean in list(losses.items())[:SHOWN]}
        self._bar.set_postfix({"epoch": epoch + 1, **shown})

    def _say(self, where: str, losses: Mapping[str, float]) -> None:
        self._said = self._clock()
        text = "  ".join(f"{name} {mean:.4g}" for name, mean in losses.items())
        left = (self._said - self._began) / self._done * (self._steps - self._done) if self._done else 0.0
        ahead = f"  {duration(left)} left" if left > 0 else ""
        print(f"{where}  {text}{ahead}", flush=True)
