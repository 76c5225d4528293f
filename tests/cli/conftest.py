"""Whatever a command shows of a run while these tests run it, --progress json can say as strict JSON."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from hz_cli import render


class BothWays:
    """A command's own progress, beside which every event is rendered as --progress json has it."""

    def __init__(self, own: render.Progress) -> None:
        self._own, self._json = own, render.JsonProgress()
        self._kinds: list[str] = []

    def __call__(self, event: Any) -> None:
        self._own(event)
        self._check(lambda: self._json(event))

    def end(self, text: str, exit_code: int, **facts: Any) -> None:
        self._own.end(text, exit_code, **facts)
        self._check(lambda: self._json.end(text, exit_code, **facts))
        assert self._kinds[-1] == "end" and self._kinds.count("end") == 1

    def close(self) -> None:
        self._own.close()

    def _check(self, show: Callable[[], None]) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            show()
        (line,) = shown.getvalue().splitlines()
        found = json.loads(line, parse_constant=_refuse)
        assert line.isascii() and found["event"] in ("start", "note", "scan", "end")
        self._kinds.append(found["event"])


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture(autouse=True)
def _every_event_is_strict_json(monkeypatch: pytest.MonkeyPatch) -> None:
    real = render.progress_of
    monkeypatch.setattr(render, "progress_of", lambda *given, **more: BothWays(real(*given, **more)))
