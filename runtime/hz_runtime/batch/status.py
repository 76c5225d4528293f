"""What has become of the scans of an output folder so far: read from its journals and its run.json.

Nothing is locked or written, and no result is opened: that its files are there is enough.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hz_runtime.batch.journal import DONE, Noted, is_run, is_scan, status_of
from hz_runtime.batch.shard import Shard
from hz_runtime.batch.shard_folder import Plan, ShardFolder
from hz_runtime.errors import UsageError
from hz_runtime.io.json_text import OTHER_FORM
from hz_runtime.results.scan_result import NOT_REACHED

State = Literal["ok", "flagged", "failed", "running", "half done", "not reached"]
STATES: tuple[State, ...] = ("ok", "flagged", "failed", "running", "half done", "not reached")
MISSING = ("failed", "half done", "not reached")


@dataclass(frozen=True)
class ScanStatus:
    """Where a scan is.

    state : as `ScanResult.status`; "running"; "half done": begun by a job that was killed, or its files are
        not all there; "not reached".  reason : why it failed, or what it was left by.  shard : "3/12", or "".
    """

    input: str
    name: str
    state: State
    reason: str = ""
    shard: str = ""


@dataclass(frozen=True)
class ShardStatus:
    """How the last run of a shard stands: "ended", "interrupted", "running", "killed" or "never started"."""

    shard: str
    state: str
    scans: int


@dataclass(frozen=True)
class FolderStatus:
    """Of all scans, in the order of a serial run, and of all shards; none where the folder has none.

    command : arguments of hz-run for what is missing; empty where the folder was not divided.
    """

    scans: tuple[ScanStatus, ...]
    shards: tuple[ShardStatus, ...] = ()
    command: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[ScanStatus, ...]:
        """What has to be run, again or for the first time."""
        return tuple(scan for scan in self.scans if scan.state in MISSING)

    def counts(self) -> dict[str, int]:
        """Number of scans by state; all of `STATES` are always there."""
        found = Counter(scan.state for scan in self.scans)
        return {state: found[state] for state in STATES}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; of scans those that are neither ok nor flagged."""
        return {
            "total": len(self.scans),
            "counts": self.counts(),
            "shards": [vars(shard) for shard in self.shards],
            "scans": [vars(scan) for scan in self.scans if scan.state not in DONE],
        }


@dataclass(frozen=True)
class Source:
    """A run that left word of its scans.  shard : None for a whole run.  running : its job is at work."""

    noted: Noted
    shard: Shard | None = None
    running: bool = False

    @property
    def started(self) -> str:
        return str(self.noted.run.get("started", ""))


def folder_status(out: Path, *, but: Shard | None = None) -> FolderStatus:
    """The status of an output folder.

    but : a shard whose job is asking, and is not counted as running.
    Raises UsageError where nothing was run there, or what was left is damaged.
    """
    plan, found = ShardFolder(out).plan(), sources(out, but)
    if plan is None and not found:
        raise UsageError(f"{out.name} holds no results of hz-run.", "Check the name:  hz-run status OUT")
    order = plan.scans if plan else tuple((s["input"], s["name"]) for s in found[0].noted.run["scans"])
    files = _files(out)
    states = _states(found, files)
    count = plan.count if plan else 1
    places = {
        name: str(Shard(n % count + 1, count)) if plan else ""
        for n, name in enumerate(sorted(dict(order).values()))
    }
    scans = tuple(
        replace(states[name], input=label)
        if name in states
        else ScanStatus(label, name, "not reached", shard=places[name])
        for label, name in order
    )
    return FolderStatus(scans, _shards(plan, found), plan.command) if plan else FolderStatus(scans)


def sources(out: Path, but: Shard | None = None) -> list[Source]:
    """All runs that left word in a folder, the earliest first. Raises UsageError for a damaged run.json."""
    place = ShardFolder(out)
    found = [Source(noted) for noted in _whole_run(out / "run.json")]
    for shard in place.shards():
        runs = place.journal(shard)
        at_work = shard != but and place.running(shard)
        found += [
            Source(noted, shard, at_work and number == len(runs)) for number, noted in enumerate(runs, 1)
        ]
    return sorted(found, key=lambda source: source.started)


def latest(found: Iterable[Source]) -> dict[str, tuple[Source, Mapping[str, Any]]]:
    """By name, the last word on every scan that has a result, and who left it."""
    return {name: (source, scan) for source in found for name, scan in source.noted.scans.items()}


def _whole_run(path: Path) -> list[Noted]:
    try:
        run = json.loads(path.read_bytes())
        if not (is_run(run) and all(map(is_scan, run["scans"]))):
            raise ValueError("a scan, or the whole, in another form")
        scans = {scan["name"]: scan for scan in run["scans"] if scan["reason"] != NOT_REACHED}
    except FileNotFoundError:
        return []
    except (OSError, *OTHER_FORM) as error:
        raise UsageError(
            "run.json is not one that hz wrote.", "Remove it, and run the scans again."
        ) from error
    return [Noted(run, scans, end=run)]


def _states(found: Iterable[Source], files: set[str]) -> dict[str, ScanStatus]:
    """By name, of all scans that any run has left word of."""
    states: dict[str, ScanStatus] = {}
    for source in found:
        shard = str(source.shard or "")
        for name, scan in source.noted.scans.items():
            state, reason = status_of(scan), str(scan.get("reason", ""))
            if state in DONE:
                reason = "; ".join(map(str, scan.get("flags", ())))
                lost = sorted({*scan["outputs"], *filter(None, [scan.get("figure")])} - files)
                if lost:
                    state, reason = "half done", f"{lost[0]} is gone"
            states[name] = ScanStatus(str(scan["input"]), name, state, reason, shard)  # type: ignore[arg-type]
        for name in source.noted.begun:
            if source.running:
                state, reason = "running", ""
            elif source.noted.end is None:
                state, reason = "half done", f"it was in flight when shard {shard} was killed"
            else:
                state, reason = "not reached", "its run ended before it was done"
            states[name] = ScanStatus("", name, state, reason, shard)  # type: ignore[arg-type]
    return states


def _files(out: Path) -> set[str]:
    """Names of the files in an output folder and its figures/, as results list them."""
    figures = out / "figures"
    inside = {f"figures/{name}" for name in os.listdir(figures)} if figures.is_dir() else set()
    return {*os.listdir(out), *inside} if out.is_dir() else set()


def _shards(plan: Plan, found: Iterable[Source]) -> tuple[ShardStatus, ...]:
    """How the last run of every shard of the plan stands."""
    last = {source.shard: source for source in found}
    states = []
    for shard in (Shard(number, plan.count) for number in range(1, plan.count + 1)):
        source, scans = last.get(shard), len(range(shard.index - 1, len(plan.scans), shard.count))
        if source is None:
            state = "never started" if scans else "ended"
        elif source.noted.end is None:
            state = "running" if source.running else "killed"
        else:
            state = "interrupted" if source.noted.end.get("interrupted") else "ended"
        states.append(ShardStatus(str(shard), state, scans))
    return tuple(states)
