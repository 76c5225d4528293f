"""The most memory that a process and all below it hold, and what else they used. Linux alone.

Not the `ru_maxrss` of `wait4`: what a process held before it became another program counts there, and a child
is its parent's copy until then. Of a benchmark that has loaded PyTorch it is the benchmark's own memory.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

PERIOD = 0.1  # seconds


def waited_for(process: subprocess.Popen[Any]) -> tuple[resource.struct_rusage, int]:
    """(what a process and all that it has waited for used, the most bytes in memory), at its end.

    Of the process itself as the kernel keeps it, of it together with those below it by a look every PERIOD.
    """
    looks = [0]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(PERIOD):
            looks.append(max(most_held(process.pid), resident(process.pid)))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        ended.set()
        looking.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage, max(looks)


def most_held(pid: int) -> int:
    """The most bytes in memory that a process held since it became what it is; 0 of one that has ended."""
    with suppress(OSError):
        for line in (Path("/proc") / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def resident(pid: int) -> int:
    """Bytes in memory of a process and all below it; those that end meanwhile count as none.

    A child that runs no program yet lives in its parent's memory and counts as none, too.
    """
    parents, sizes = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)], sizes[int(entry.name)] = int(fields[1]), tuple(map(int, fields[20:22]))
    below, found = {pid}, {pid}
    while found:
        found = {child for child, parent in parents.items() if parent in found}
        below |= found
    there = [one for one in below if one in sizes]
    held = [sizes[one][1] for one in there if one == pid or sizes[one] != sizes.get(parents[one])]
    return sum(held) * os.sysconf("SC_PAGE_SIZE")
