"""Batches made ahead: in order, each once, none past the end, and no thread that outlives them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch")

from hz_train import ahead
from hz_train.ahead import Arrays, batches_ahead, workers

STEPS = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
Made = list[tuple[int, int]]


def maker(made: Made, at_once: int = 1) -> Callable[[int, int], Arrays]:
    """Arrays that name their step, noted in `made`; the first ones come only when so many are at work."""
    first = threading.Barrier(at_once, timeout=30)
    lock = threading.Lock()

    def make(epoch: int, index: int) -> Arrays:
        with lock:
            made.append((epoch, index))
            waits = len(made) <= at_once
        if waits:
            first.wait()  # breaks where fewer than these are at it
        return (np.array([epoch, index], np.float32),)

    return make


def at_work() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches-ahead")]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_each_step_is_made_once_and_comes_in_turn(count: int) -> None:
    """Asked for seven, seven are made, however many could be made at once; the threads are gone then."""
    made: Made = []
    found = [tuple(arrays[0].tolist()) for arrays in batches_ahead(maker(made, min(count, 7)), STEPS, count)]
    assert found == STEPS
    assert sorted(made) == STEPS
    assert not at_work()


def test_no_more_is_made_than_the_next_ones() -> None:
    made: Made = []
    batches = batches_ahead(maker(made), STEPS, 2)
    assert not made  # nothing before the first is asked for
    next(batches)
    batches.close()
    assert set(made) <= set(STEPS[:3])
    assert not at_work()


def test_an_error_comes_at_its_steps_turn_and_ends_the_threads() -> None:
    made: Made = []
    good = maker(made)

    def make(epoch: int, index: int) -> Arrays:
        if (epoch, index) == (1, 0):
            raise ValueError("no brain")
        return good(epoch, index)

    batches = batches_ahead(make, STEPS, 3)
    assert [next(batches)[0].tolist() for _ in range(2)] == [[0, 0], [0, 1]]
    with pytest.raises(ValueError, match="no brain"):
        next(batches)
    assert not at_work()


def test_an_iterator_that_is_dropped_leaves_no_thread() -> None:
    batches = batches_ahead(maker([]), STEPS, 2)
    next(batches)
    assert at_work()
    del batches
    gc.collect()
    assert not at_work()


@pytest.mark.parametrize(
    ("device", "threads", "processes", "count"),
    [("cpu", 64, 1, 1), ("cuda", 4, 1, 3), ("cuda", 64, 1, ahead.MOST), ("cuda", 8, 2, 3), ("cuda", 1, 1, 1)],
)
def test_for_a_gpu_several_steps_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch, device: str, threads: int, processes: int, count: int
) -> None:
    """As many as there are threads to spare beside the one that trains, in each process."""
    monkeypatch.setattr(ahead, "usable_cpus", lambda: threads)
    assert workers(device, processes) == count
