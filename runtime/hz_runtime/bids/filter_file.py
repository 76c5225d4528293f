"""BIDS filter files, as fMRIPrep's --bids-filter-file takes them: which T1w scans of a data set are wanted.

They mean here what PyBIDS makes of them for fMRIPrep: null, or "Query.NONE", is a name without the entity,
"*", or "Query.ANY", one with whatever value. What hz would have to ignore silently is refused; only queries
for other kinds of scans, which fMRIPrep's files have as well, are passed over with a note. Names of files are
`layout`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hz_runtime.bids.layout import ANY
from hz_runtime.errors import UsageError
from hz_runtime.io.annex import require_fetched
from hz_runtime.io.atomic import shown

# Names of a filter file (those of PyBIDS) to the keys in file names.
ENTITIES = {
    "acquisition": "acq",
    "ceagent": "ce",
    "desc": "desc",
    "echo": "echo",
    "extension": "extension",
    "part": "part",
    "reconstruction": "rec",
    "run": "run",
    "session": "ses",
    "space": "space",
    "subject": "sub",
}
# Queries of fMRIPrep and its relatives (niworkflows' collect_data) for scans that hz does not take.
OTHER_QUERIES = ("asl", "bold", "dwi", "flair", "fmap", "pet", "roi", "sbref", "t2w")
_FIXED = {"datatype": "anat", "suffix": "T1w"}  # of every scan that hz takes
# PyBIDS' words, as Python prints them: Query.NONE, and <Query.NONE: 1> of older ones.
_QUERY = re.compile(r"<?Query\.([A-Z]+)(?:: ?\d+>)?")
_QUERIES: Mapping[str, str | None] = {"NONE": None, "ANY": ANY, "REQUIRED": ANY}
_OPTIONAL = "OPTIONAL"  # with or without: asks for nothing
_EXAMPLE = 'Write it so:  {"t1w": {"session": "1", "run": 1}}'


def read_filter(path: Path) -> tuple[dict[str, tuple[str | None, ...]], tuple[str, ...]]:
    """(`layout.Wanted.entities` of a filter file, notes about queries that are not for T1w scans).

    Raises UsageError where it is no such JSON, or asks by something that hz does not know.
    """
    name = shown(path)
    require_fetched(path)
    try:
        whole = json.loads(path.read_text("utf-8-sig"))
        queries = {str(key): dict(query) for key, query in whole.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"{name}: not a BIDS filter file.", _EXAMPLE) from error
    ours = [key for key in queries if key.casefold() == "t1w"]
    others = [key for key in queries if key.casefold() in OTHER_QUERIES]
    if unknown := [key for key in queries if key not in (*ours, *others)]:
        raise UsageError(f"{name}: {', '.join(map(repr, unknown))} is no kind of scan.", _EXAMPLE)
    if len(ours) > 1:
        raise UsageError(f"{name}: {' and '.join(ours)} mean the same.", "Leave one of them.")
    notes = [f"{name}: {', '.join(others)}: hz takes T1w scans only, ignored"] if others else []
    if not ours:
        notes.append(f"{name}: says nothing of t1w, so that every T1w scan is taken")
    found: dict[str, tuple[str | None, ...]] = {}
    for key, value in (queries[ours[0]] if ours else {}).items():
        asked = _values(name, key, value)
        if asked is None:
            continue
        if key in _FIXED:
            _check_fixed(name, key, asked)
        elif key in ENTITIES:
            found[ENTITIES[key]] = asked
        else:
            raise UsageError(f"{name}: T1w scans cannot be chosen by {key!r}.", f"Use {', '.join(ENTITIES)}.")
    return found, tuple(notes)


def _values(name: str, key: str, value: Any) -> tuple[str | None, ...] | None:
    """The values that are allowed, None among them for a name without the entity; None: all of them."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, str | int | None) for v in values):
        raise UsageError(f"{name}: {key} is {json.dumps(value)}.", "Give labels, numbers or null.")
    allowed: list[str | None] = []
    for one in values:
        text = None if one is None else str(one)
        query = _QUERY.fullmatch(text) if text else None
        if query is None:
            allowed.append(text)
        elif query[1] == _OPTIONAL:
            return None
        elif query[1] in _QUERIES:
            allowed.append(_QUERIES[query[1]])
        else:
            raise UsageError(f"{name}: {key} is {text!r}, which is no query of PyBIDS.", "Query.NONE or ANY.")
    return tuple(allowed)


def _check_fixed(name: str, key: str, asked: Iterable[str | None]) -> None:
    if not {_FIXED[key], ANY} & set(asked):
        raise UsageError(
            f"{name}: no T1w scan has the {key} that it asks for.", f'{key} is always "{_FIXED[key]}".'
        )
