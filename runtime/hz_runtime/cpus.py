"""How many CPUs this process may use: of its affinity and of its control groups, whichever is less.

A container's limit is a quota of CPU time (`docker run --cpus`, a Kubernetes limit), which shows in neither
the affinity nor the machine's count. Threads beyond it only wait for their turn. Memory is not looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def usable_cpus() -> int:
    """CPUs this process may use, 1 or more: the default of every number of threads, in all rooms.

    A quota of part of a CPU is rounded down: with a thread more, all of them would be stopped in turns.
    """
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_quota()
    return max(1, have if limit is None else min(have, int(limit)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the control groups of this process (version 1 or 2) grant it; None where none sets a limit.

    The least of the process's own group and of all that hold it, as far as they are mounted here. What cannot
    be read sets no limit. root : where proc and sys lie, for tests.
    """
    limits = []
    for folder in _groups(root):
        with suppress(OSError, ValueError, IndexError, ZeroDivisionError):
            limits.append(_limit(folder))
    return min((limit for limit in limits if limit > 0), default=None)


def _limit(group: Path) -> float:
    """CPUs of one group; raises, or gives what is not above 0, where it has no limit."""
    if (group / "cpu.max").exists():  # version 2: "200000 100000" or "max 100000"
        quota, period = (group / "cpu.max").read_text().split()[:2]
        return int(quota) / int(period)
    quota = (group / "cpu.cfs_quota_us").read_text()  # version 1: -1 for no limit
    return int(quota) / int((group / "cpu.cfs_period_us").read_text())


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the process's own groups that limit CPU time, and of those above them."""
    own = dict(_own_groups(root))
    for version, top, mounted in _mounts(root):
        if version not in own:
            continue
        inside = PurePosixPath(own[version])
        # A container may be shown its group's path on the host, of which only a part is mounted here.
        below = inside.relative_to(top) if inside.is_relative_to(top) else PurePosixPath()
        parts = () if ".." in below.parts else below.parts
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(mounted.lstrip("/"), *parts[:depth])


def _own_groups(root: Path) -> Iterator[tuple[int, str]]:
    """(version, path) of the process's groups that may limit CPU time."""
    for line in _lines(root / "proc/self/cgroup"):  # e.g. "4:cpu,cpuacct:/docker/3f" or "0::/user.slice"
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number, controllers) == ("0", ""):
            yield 2, path
        elif "cpu" in controllers.split(","):
            yield 1, path


def _mounts(root: Path) -> Iterator[tuple[int, str, str]]:
    """(version, group at its top, where it is mounted) of every hierarchy that may limit CPU time."""
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, source = line.partition(" - ")
        places, kind = mount.split()[3:5], source.split()
        if len(places) < 2 or len(kind) < 3:
            continue
        top, mounted = (_unescaped(text) for text in places)
        if kind[0] == "cgroup2":
            yield 2, top, mounted
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            yield 1, top, mounted


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or proc is not mounted
        return []


def _unescaped(text: str) -> str:
    """A path as mountinfo writes it: a space, say, is backslash 040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
