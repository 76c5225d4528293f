"""What a training says where it is ended from outside: what is kept, and the command that goes on."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


class _Ended(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it before it kills."""


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Run a training of `hz_train.fit` in `out`; on Ctrl-C and SIGTERM say how it goes on, and exit.

    Exit code 130 or 143, as a shell has it. What was trained is kept at the end of every epoch.
    """
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _end) if here else None
    try:
        yield
    except KeyboardInterrupt as error:
        kept = any(out.rglob("*-last.safetensors"))
        what = f"finished epochs are kept in {out}" if kept else "no epoch had ended, so that nothing is kept"
        again = shlex.join(["hz-train", *sys.argv[1:]])
        click.echo(f"\ninterrupted: {what}. To go on:\n  {again}", err=True)
        sys.exit(143 if isinstance(error, _Ended) else 130)
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def _end(_number: int, _frame: object) -> None:
    raise _Ended
