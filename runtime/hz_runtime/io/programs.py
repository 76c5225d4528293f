"""Other people's programs, started with bounds: time, memory, the files that they write.

They read what strangers sent. A program that hangs is ended with all that it started; one that wants more
memory than its input explains gets none; one that writes without end is ended by the system. What became of
it is for the caller to say: that differs by program. Memory and files are bounded on Linux, time everywhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# N4 of a head of 256 x 256 x 256 float32 voxels takes six times its input, and writes twice as much.
MEMORY_TIMES, LEAST_MEMORY = 32, 2**32  # bytes; threads' stacks count, too
FILE_TIMES, LEAST_FILE = 16, 2**26
_SAID = 4096  # bytes of what it writes that are kept
OWN_FAULTS = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP", "SIGXFSZ")


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    code : its exit code; minus a signal's number where one ended it; None where it took too long.
    out, err : the beginning of what it wrote.
    """

    code: int | None
    out: str
    err: str

    @property
    def crashed(self) -> bool:
        """Whether it died of what it did itself, and was not ended from outside."""
        return self.code is not None and any(-self.code == getattr(signal, name, 0) for name in OWN_FAULTS)


def run_program(
    command: Sequence[str],
    folder: Path,
    *,
    seconds: float,
    given: int,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a program in `folder`, in a group of its own: a Ctrl-C of the terminal does not reach it.

    seconds : after which it is ended.  given : bytes of its input, unpacked, by which memory and the size
    of every file that it writes are bounded.  environment : all of it; None: that of this process.
    Raises OSError where it cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            process_group=0,
        )
        try:
            _bound(process.pid, given)
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Ended(code, _beginning(out), _beginning(err))


def _bound(pid: int, given: int) -> None:
    """From outside: code between fork and exec may hang where there are threads. It comes a moment late, so
    that a program that starts others at once would have them unbound; those that hz starts do not.
    """
    import resource

    if not hasattr(resource, "prlimit"):
        return
    for what, most in (
        (resource.RLIMIT_DATA, LEAST_MEMORY + MEMORY_TIMES * given),
        (resource.RLIMIT_FSIZE, LEAST_FILE + FILE_TIMES * given),
        (resource.RLIMIT_CORE, 0),  # it would hold the scan
    ):
        with suppress(ProcessLookupError, PermissionError, ValueError):  # ended already; less is allowed
            _, hard = resource.prlimit(pid, what)
            bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.prlimit(pid, what, (bound, bound))


def _beginning(written: IO[bytes]) -> str:
    written.seek(0)
    return written.read(_SAID).decode("utf-8", "replace")
