"""How many scans, and how large ones, are in memory at a time. Who works on them is not known here."""

from __future__ import annotations

import math
import threading

VOXELS_A_SCAN = 256**3
BYTES_A_VOXEL = 30  # of a scan in flight: a 256^3 head takes about 0.5 GB
BYTES_OF_NONE = 10**9  # what a process takes that has opened its networks and has no scan in flight


def voxels_in(megabytes: int) -> int:
    """Voxels in flight that fit into this much memory, 1 or more: a bound for `Budget`, and a rough one."""
    return max(1, (megabytes * 10**6 - BYTES_OF_NONE) // BYTES_A_VOXEL)


class Budget:
    """Scans in flight. One scan with more voxels than the bound passes when it is alone.

    A scan counts once it is read: while readers wait here, each holds one more.

    voxels : of all of them, at most.  scans : at most; None for no bound on their number.
    """

    def __init__(self, voxels: int, scans: int | None = None) -> None:
        self._most_voxels: float = voxels
        self._most_scans: float = math.inf if scans is None else scans
        self._voxels = self._scans = 0
        self._free = threading.Condition()

    def take(self, voxels: int) -> None:
        """Wait until there is room for one more scan."""
        with self._free:
            self._free.wait_for(lambda: self._has_room(voxels))
            self._voxels += voxels
            self._scans += 1

    def _has_room(self, voxels: int) -> bool:
        fits = self._scans < self._most_scans and self._voxels + voxels <= self._most_voxels
        return self._scans == 0 or fits

    def give(self, voxels: int) -> None:
        """Give back what a scan of so many voxels took."""
        with self._free:
            self._voxels -= voxels
            self._scans -= 1
            self._free.notify_all()

    def lift(self) -> None:
        """End the bounds, for who waits here and who comes later."""
        with self._free:
            self._most_voxels = self._most_scans = math.inf
            self._free.notify_all()
