"""The line of series on their way: its length, and its end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from hz_runtime.hospital.journal import Entry
from hz_runtime.hospital.line import Line


def entry(name: str) -> Entry:
    return Entry(name, "pending", "", 0, 0.0, "", (), 0.0)


def test_a_place_is_free_when_a_series_has_left() -> None:
    line = Line(2, threading.Event())
    for name in ("a", "b"):
        assert line.wait()
        line.enter(Path(name), entry(name), time.perf_counter() - 5)
    assert line.series() == {"a", "b"} and line.at(Path("a"))[1] == pytest.approx(5, abs=1)
    got: list[bool] = []
    waiting = threading.Thread(target=lambda: got.append(line.wait()))
    waiting.start()
    time.sleep(0.3)
    assert not got
    line.leave(Path("a"))
    waiting.join(10)
    assert got == [True] and line.series() == {"b"}


def test_nobody_waits_at_a_line_that_has_ended() -> None:
    stopped = threading.Event()
    stopped.set()
    assert not Line(1, stopped).wait()
    line = Line(1, threading.Event())
    assert line.wait()
    threading.Timer(0.1, line.close).start()
    assert not line.wait()
