"""What a shard's run notes while it goes on, a JSON object a line, so that a killed one has not lost it.

    {"run": {...}}       how it is done: what run.json holds, but for scans; before all else that it notes
    {"begun": NAME}      a scan's turn came
    {"scan": {...}}      what became of it: an object of run.json["scans"]
    {"end": {...}}       the run has ended: "seconds", "interrupted"

Runs of the same shard follow each other in one file. One that changes nothing notes nothing.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from hz_runtime.results.scan_result import ScanResult

DONE = ("ok", "flagged")
MAX_LINE_BYTES = 1 << 22  # no scan's word is as long; what is longer is read in pieces, which are no lines


@dataclass
class Noted:
    """One run of a journal.

    run : how it was done.  scans : what became of scans, by name.  begun : names of those whose turn came and
    that have no result.  end : None where the run has not ended: it goes on, or was killed.
    """

    run: Mapping[str, Any]
    scans: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    end: Mapping[str, Any] | None = None


def read_journal(path: Path) -> list[Noted]:
    """The runs of a journal, in order; none where there is no such file. Lines that are cut short, or that no
    run wrote, are passed over."""
    runs: list[Noted] = []
    for line in _objects(path):
        if is_run(run := line.get("run")):
            runs.append(Noted(run))
        elif not runs:
            continue
        elif isinstance(name := line.get("begun"), str):
            runs[-1].begun.add(name)
        elif is_scan(scan := line.get("scan")):
            runs[-1].scans[scan["name"]] = scan
            runs[-1].begun.discard(scan["name"])
        elif _is_end(end := line.get("end")):
            runs[-1].end = end
    return runs


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(FileNotFoundError), open(path, "rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES):
            with suppress(ValueError, RecursionError):
                if isinstance(found := json.loads(line), dict):
                    yield found


def is_run(found: Any) -> TypeGuard[dict[str, Any]]:
    """Whether this is how a run is done, as far as others go by it."""
    if not isinstance(found, dict):
        return False
    return all(isinstance(found.get(key) or {}, dict) for key in ("bundle", "options"))


def is_scan(found: Any) -> TypeGuard[dict[str, Any]]:
    """Whether this is an object of run.json["scans"], as far as others go by it."""
    if not isinstance(found, dict):
        return False
    texts = [found.get(key) for key in ("input", "name", "status", "reason")]
    for key in ("outputs", "flags"):
        texts += found[key] if isinstance(found.get(key), list) else [None]
    if not all(isinstance(text, str) for text in (*texts, found.get("figure") or "")):
        return False
    seconds, verdicts = found.get("seconds") or {}, [found.get(key) or [] for key in ("gates", "quality")]
    if not (isinstance(seconds, dict) and all(map(_is_number, seconds.values()))):
        return False
    if not all(isinstance(each, list) and all(isinstance(one, dict) for one in each) for each in verdicts):
        return False
    try:
        ScanResult.from_dict(found)
    except (TypeError, ValueError, OverflowError):
        return False
    return status_of(found) in ("failed", "skipped", *DONE) and _is_number(found.get("age") or 0)


def _is_end(found: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(found, dict) and _is_number(found.get("seconds", 0))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -1e300 < value < 1e300


def status_of(scan: Mapping[str, Any]) -> str:
    """The status that a scan got when it was done, of an object of run.json["scans"]."""
    return str(scan.get("recorded") or scan.get("status"))


class Journal:
    """Appended to by one process, from any thread.

    handle : of the file, open for appending, and this process's alone.  run : how this run is done.
    problem : why not all could be noted; "" as long as it could. That stops no run.
    """

    problem = ""

    def __init__(self, path: Path, handle: int, run: Mapping[str, Any]) -> None:
        self._handle, self._run = handle, run
        self._lock = threading.Lock()
        self._begun = False  # to note something
        self._known = {name: scan for noted in read_journal(path) for name, scan in noted.scans.items()}
        self._torn = path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")  # by a kill

    def begin(self, name: str) -> None:
        """A scan's turn has come; not noted of one that is known to be done."""
        if status_of(self._known.get(name, {})) not in DONE:
            self._note("begun", name)

    def scan(self, scan: Mapping[str, Any]) -> None:
        """What became of a scan; not noted where it was done before, and that is known."""
        if not (scan["recorded"] and self._same(self._known.get(str(scan["name"])), scan)):
            self._note("scan", scan)

    def end(self, seconds: float, interrupted: bool) -> None:
        """The run has ended; not noted where it has noted nothing."""
        if self._begun:
            self._note("end", {"seconds": round(seconds, 3), "interrupted": interrupted})

    @staticmethod
    def _same(known: Mapping[str, Any] | None, scan: Mapping[str, Any]) -> bool:
        keys = ("input", "sha256", "outputs", "figure", "age", "flags", "site")
        if known is None or status_of(known) != status_of(scan):
            return False
        return all(known.get(key) == scan.get(key) for key in keys)

    def _note(self, kind: str, what: Any) -> None:
        with self._lock:
            lines = [] if self._begun else [{"run": self._run}]
            text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in [*lines, {kind: what}])
            try:
                os.write(self._handle, (("\n" if self._torn else "") + text).encode())
            except OSError as error:
                self.problem = error.strerror or type(error).__name__
            self._begun, self._torn = True, bool(self.problem)
