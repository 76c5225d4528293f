"""A call in a thread of its own, beside what whoever started it does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """`call` in a thread of its own, begun at once.  name : of the thread.

    A context manager at whose end the call has ended, whatever came of it.
    """

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self._ended: list[tuple[T | None, BaseException | None]] = []

        def run() -> None:
            try:
                self._ended.append((call(), None))
            except BaseException as error:
                self._ended.append((None, error))

        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """What the call returned or raised, as soon as it has; once: it is not kept."""
        self._thread.join()
        result, error = self._ended.pop()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def wait(self) -> None:
        """Until the call has ended."""
        self._thread.join()

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
