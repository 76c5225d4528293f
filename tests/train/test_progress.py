"""Where there is no terminal, training says where it is once a minute and at every epoch's end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hz_train.progress import TrainingProgress, counted


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(capsys: pytest.CaptureFixture[str], *, silent: bool = False) -> list[str]:
    """Two epochs of 5 steps of 25 s."""
    clock = Clock()
    with TrainingProgress(10, 2, silent=silent, clock=clock) as progress:
        for epoch in range(2):
            for index in range(5):
                clock.now += 25
                progress.step(epoch, index, 5, lambda index=index: {"cycle": 1 / (index + 1)})
            progress.epoch(epoch, {"cycle": 0.2})
    return capsys.readouterr().out.splitlines()


def test_a_line_a_minute_with_losses_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(capsys) == [
        "epoch 1 of 2, step 3 of 5  cycle 0.3333  2 min 55 s left",
        "epoch 1 of 2  cycle 0.2  2 min 5 s left",
        "epoch 2 of 2, step 3 of 5  cycle 0.3333  50.0 s left",
        "epoch 2 of 2  cycle 0.2",
    ]


def test_other_processes_than_the_first_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(capsys, silent=True) == []


def test_a_line_a_minute_while_scans_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()

    def slow() -> Iterator[str]:
        for name in "abcdef":
            clock.now += 35
            yield name

    assert list(counted(slow(), 6, "scans to model space", clock)) == list("abcdef")
    assert capsys.readouterr().out.splitlines() == [
        "scans to model space: 2 of 6",
        "scans to model space: 4 of 6",
    ]
