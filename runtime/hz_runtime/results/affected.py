"""Which results a later fix concerns, by the versions in their records. fixes.json lists the fixes.

A fix names the last versions that had the fault: of hz, of the record, of preparation, or a bundle. Whether a
scan is one of those that the fault touched is not looked at: the fix says in words which they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hz_runtime.io.json_text import OTHER_FORM
from hz_runtime.results.versions import hz_version

TABLE = Path(__file__).with_name("fixes.json")
MAX_RECORD_BYTES = 1 << 20
# The same command again makes what is older than these anew.
_MADE_ANEW = ("record", "preparation", "bundle")


@dataclass(frozen=True)
class Fix:
    """A fault that is mended.

    id : its name in tables.  release : that has it mended.  made_by : alternatives; of each all must hold:
        "hz", "record", "preparation" are the last versions with the fault, "bundle" is the id of one.
    scans : which were touched, in words.  what : what was wrong with them.
    """

    id: str
    release: str
    made_by: tuple[Mapping[str, Any], ...]
    scans: str
    what: str


@dataclass(frozen=True)
class Made:
    """What made a result.

    name : of its record, relative to the folder.  hz : version, "" where the record does not say it.
    record : version of the record.  preparation : version of the preparation of raw heads; None: a scan that
    was not prepared, -1: not known, as in records of hz-prepare.  bundle : id, "" without one.
    """

    name: str
    hz: str
    record: int
    preparation: int | None
    bundle: str


@cache
def fixes() -> tuple[Fix, ...]:
    """All of the table, the latest release first."""
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    return tuple(
        Fix(fix["id"], release["version"], tuple(fix["made_by"]), fix["scans"], fix["what"])
        for release in content["releases"]
        for fix in release["fixes"]
    )


def results_of(out: Path) -> Iterator[Made]:
    """What made each result in an output folder and the folders in it, in the order of names; those whose
    names begin with a dot, where runs keep what they work with, are left out."""
    for folder, below, names in os.walk(out):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".json"):
                path = Path(folder) / name
                if made := _made(path, path.relative_to(out).as_posix()):
                    yield made


def concerns(fix: Fix, made: Made) -> bool | None:
    """Whether a fault may be in a result; None where its record does not say what decides it.

    A version of hz counts from the next one on: between two releases it tells nothing.
    """
    answers = [_all(_holds(key, last, made) for key, last in one.items()) for one in fix.made_by]
    return True if True in answers else None if None in answers else False


def made_anew(fix: Fix) -> bool:
    """Whether the same command again makes the results anew that the fix concerns."""
    return all(any(key in one for key in _MADE_ANEW) and "hz" not in one for one in fix.made_by)


def _all(answers: Iterator[bool | None]) -> bool | None:
    found = list(answers)
    return False if False in found else None if None in found else True


def _holds(key: str, last: Any, made: Made) -> bool | None:
    if key == "bundle":
        return made.bundle == str(last)
    if key == "record":
        return made.record <= int(last)
    if key == "preparation":
        return (
            None if made.preparation == -1 else made.preparation is not None and made.preparation <= int(last)
        )
    if not made.hz:
        return None
    return _parts(made.hz) <= _parts(last) < _parts(hz_version())


def _parts(version: str) -> tuple[int, ...]:
    """1.10.2 as numbers; what follows them (rc1, .dev3) is left out."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _made(path: Path, name: str) -> Made | None:
    """None for a file that is no record of hz."""
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            return None
        content = json.loads(path.read_bytes())
        stored = content["hz"]
        record, bundle = int(stored["record"]), str(stored["bundle"])
        made_by = content.get("GeneratedBy")
        if made_by is None:  # of hz-prepare: its template stands in the bundle's place
            return Made(name, "", record, -1, "")
        prepare = made_by[0]["Options"].get("prepare")
        version = None if prepare is None else int(prepare["version"])
        return Made(name, str(made_by[0]["Version"]), record, version, bundle)
    except (OSError, *OTHER_FORM):
        return None
