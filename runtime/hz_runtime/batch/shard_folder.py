"""OUT/shards: which scans a run was divided into, what each shard's jobs noted, and who is at work now.

Results themselves lie in OUT, as of one run. `status` and `gather` read this folder; it holds the command as
it was typed, and may be removed once the shards have been gathered.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hz_runtime.batch.folder_lock import in_turn, locked
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.journal import Noted, read_journal
from hz_runtime.batch.shard import MOST_SHARDS, Shard
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import shared_file
from hz_runtime.io.json_text import OTHER_FORM, to_json

FOLDER = "shards"
PLAN = "plan.json"
_PATIENCE = 0.5  # seconds: `running` holds a journal for a moment
_JOURNAL = re.compile(r"0*(\d+)-of-(\d+)\.jsonl")


@dataclass(frozen=True)
class Plan:
    """What all shards of a folder do together.

    scans : (label, name) of every scan, in the order of a serial run.  count : shards.
    command : arguments of hz-run, without those that choose a part.
    """

    scans: tuple[tuple[str, str], ...]
    count: int
    command: tuple[str, ...]

    @classmethod
    def of(cls, scans: Sequence[InputScan], count: int, command: Sequence[str]) -> Plan:
        return cls(tuple((scan.label, scan.name) for scan in scans), count, tuple(command))

    def to_bytes(self) -> bytes:
        scans = [{"input": label, "name": name} for label, name in self.scans]
        return to_json({"schema": "1.0", "shards": self.count, "command": list(self.command), "scans": scans})

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Raises one of OTHER_FORM where it is none."""
        found = json.loads(data)
        scans = tuple((str(scan["input"]), str(scan["name"])) for scan in found["scans"])
        count = int(found["shards"])
        if not 1 <= count <= MOST_SHARDS:
            raise ValueError("no number of shards")
        if any(len(set(column)) < len(scans) for column in zip(*scans, strict=True)):
            raise ValueError("a scan twice")
        return cls(scans, count, tuple(map(str, found["command"])))

    def names_of(self, shard: Shard) -> set[str]:
        """Names of a shard's scans."""
        return {scan.name for scan in shard.takes([InputScan(Path(), *scan) for scan in self.scans])}


@dataclass(frozen=True)
class ShardFolder:
    """The folder of the shards of the output folder `out`."""

    out: Path

    @property
    def path(self) -> Path:
        return self.out / FOLDER

    def log(self, shard: Shard) -> Path:
        return self.path / f"{shard.name}.log"

    def plan(self) -> Plan | None:
        """None where the folder was never divided. Raises UsageError where its plan is damaged."""
        try:
            return Plan.from_bytes((self.path / PLAN).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, *OTHER_FORM) as error:
            raise UsageError(
                f"{FOLDER}/{PLAN} is not one that hz wrote.", "Remove it, and run the shards again."
            ) from error

    def shards(self) -> list[Shard]:
        """Those that have noted something, or are at work, in order."""
        names = sorted(os.listdir(self.path)) if self.path.is_dir() else []
        found = [Shard(int(m[1]), int(m[2])) for name in names if (m := _JOURNAL.fullmatch(name))]
        return sorted(found, key=lambda shard: (shard.count, shard.index))

    def journal(self, shard: Shard) -> list[Noted]:
        return read_journal(self._journal(shard))

    def running(self, shard: Shard) -> bool:
        """Whether a process, on whatever machine, works on a shard; False where locks are not to be had."""
        import fcntl

        try:
            handle = os.open(self._journal(shard), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(handle)
        return False

    @contextmanager
    def hold(self, shard: Shard, plan: Plan) -> Iterator[tuple[Path, int]]:
        """(path, handle) of a shard's journal, which nobody else writes to meanwhile.

        Other shards of the same `plan` may be held at the same time, a whole run of the folder may not.
        Raises UsageError where somebody is at work whom this would meet, or the folder cannot be written.
        """
        with locked(self.out, shared=True):
            self.path.mkdir(exist_ok=True)
            handle = os.open(self._journal(shard), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                with in_turn(self.path):  # an array's jobs start together: the first one's plan is there then
                    self._take(handle, shard)
                    self._agree(shard, plan)
                yield self._journal(shard), handle
            finally:
                os.close(handle)

    def _take(self, handle: int, shard: Shard) -> None:
        import fcntl

        limit = time.monotonic() + _PATIENCE
        with suppress(OSError):  # a file system without locks: the scheduler's numbers have to do
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError as error:
                    if time.monotonic() > limit:
                        raise UsageError(
                            f"another job is at work on shard {shard} of {self.out.name}.",
                            "Wait until it has ended.",
                        ) from error
                time.sleep(0.01)

    def _agree(self, shard: Shard, plan: Plan) -> None:
        """Write the plan, unless it is there already; the shards at work have to be of the same division."""
        before = self.plan()
        same = before is not None and set(before.scans) == set(plan.scans)
        for other in self.shards():
            if (same and other.count == shard.count) or other == shard or not self.running(other):
                continue
            raise UsageError(
                f"shard {other} of {self.out.name} is at work, of "
                f"{'other scans' if other.count == shard.count else 'another number of shards'}.",
                "Wait until all shards have ended.",
            )
        if not same or before is None or (before.count, before.command) != (plan.count, plan.command):
            shared_file(self.path / PLAN, plan.to_bytes())

    def _journal(self, shard: Shard) -> Path:
        return self.path / f"{shard.name}.jsonl"


def header(run: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json holds, without what is of its scans."""
    return {key: value for key, value in run.items() if key not in ("scans", "counts", "timings")}
