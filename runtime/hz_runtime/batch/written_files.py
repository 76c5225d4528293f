"""The files of one scan while they are written: what the commit record says of them, and how to undo them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from hz_runtime.io.atomic import atomic_write_bytes, sha256_bytes


class WrittenFiles:
    """Files written into the folder `out`, each atomically.

    outputs : name -> {"bytes": int, "sha256": hex} of those that are whole.
    """

    def __init__(self, out: Path) -> None:
        self.outputs: dict[str, dict[str, Any]] = {}
        self._out = out
        self._begun: list[str] = []

    def add(self, name: str, data: bytes) -> None:
        """Write these bytes, into a folder that may have to be made. Raises HzError or OSError (disk)."""
        self._begun.append(name)
        (self._out / name).parent.mkdir(exist_ok=True)
        atomic_write_bytes(self._out / name, data)
        self.outputs[name] = {"bytes": len(data), "sha256": sha256_bytes(data)}

    def remove(self) -> None:
        """Remove what was begun, also where an earlier run's file of that name was not yet replaced."""
        for name in self._begun:
            with suppress(OSError):
                (self._out / name).unlink()
