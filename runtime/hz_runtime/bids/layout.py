"""The T1-weighted scans of a BIDS data set, by participant and session.

Only what BIDS says about anat/*_T1w files is known here; ages and sites are `people`'s. Everything else in a
data set (derivatives/, sourcedata/, other modalities, hidden files) is never entered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hz_runtime.bids.people import PeopleTable, Person
from hz_runtime.errors import UsageError
from hz_runtime.io.annex import require_fetched
from hz_runtime.io.atomic import shown

_T1W = re.compile(r"_T1w\.nii(\.gz)?$")
_LABEL = re.compile(r"[A-Za-z0-9]+")
_NO_MAGNITUDE = ("phase", "real", "imag")  # values of the entity part that are not what a scanner shows
ANY = "*"  # among the values of an entity that are wanted: whatever is there; no label is spelt so


@dataclass(frozen=True)
class Unit:
    """The T1-weighted scans of one participant in one session: what is run, locked and reported together.

    subject, session : labels without "sub-" and "ses-"; session None where the data set has none.
    scans : their files, sorted.  age, site : years at this session, and where it was scanned, where the data
        set says so (columns age and site of participants.tsv and sub-*_sessions.tsv).
    notes : why a table, or an age in it, was not taken.
    """

    subject: str
    session: str | None
    scans: tuple[Path, ...]
    age: float | None = None
    site: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """ "sub-01" or "sub-01_ses-1"."""
        return f"sub-{self.subject}" + ("" if self.session is None else f"_ses-{self.session}")

    @property
    def folder(self) -> Path:
        """ "sub-01" or "sub-01/ses-1", relative to a data set."""
        return Path(*self.name.split("_"))


@dataclass(frozen=True)
class Wanted:
    """Which scans of a data set to take; empty means all.

    subjects, sessions : labels, with or without their prefix.
    entities : key of a file name, or "extension" -> the values allowed; None in there allows a name without
        the key, ANY one with it.
    """

    subjects: Sequence[str] = ()
    sessions: Sequence[str] = ()
    entities: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def takes(self, path: Path) -> bool:
        """Whether the entities of a file name are wanted."""
        found = {**entities(path.name), "extension": ".nii.gz" if path.name.endswith(".gz") else ".nii"}
        return all(
            any(_same(found.get(key), value) for value in values) for key, values in self.entities.items()
        )


def entities(name: str) -> dict[str, str]:
    """{"sub": "01", "run": "2"} of sub-01_run-2_T1w.nii.gz."""
    parts = (word.partition("-") for word in name.split(".")[0].split("_"))
    return {key: value for key, dash, value in parts if dash}


def find_units(root: Path, wanted: Wanted | None = None) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
    """(units with a wanted scan, in the order of their names, notes about the scans that were left out).

    Raises UsageError where a participant or session asked for is not there, or nothing is left. Messages do
    not name the data set's folder, which may be a person's.
    """
    wanted = wanted or Wanted()
    participants = PeopleTable.read(root / "participants.tsv", "participant_id")
    units: list[Unit] = []
    notes: list[str] = []
    for folder in _subjects(root, wanted.subjects):
        before = len(units)
        units += _units_of(folder, wanted, participants, notes)
        if len(units) == before:
            notes.append(f"{folder.name}: no T1w scan to take")
    if wanted.sessions:
        missing = {_bare(s, "ses") for s in wanted.sessions} - {unit.session for unit in units}
        if missing:
            raise UsageError(
                f"no T1w scan in session {', '.join(sorted(missing))}.", "Check --session-label."
            )
    if not units:
        raise UsageError(
            "no T1w scan found in the data set.",
            "Scans must lie in sub-LABEL/[ses-LABEL/]anat/ and end in _T1w.nii or _T1w.nii.gz.",
        )
    return tuple(units), tuple(notes)


def check_raw(root: Path) -> None:
    """The little that hz needs a raw data set to be; the BIDS validator checks the rest.

    Raises UsageError where `root` is no folder, or dataset_description.json is missing, not fetched,
    unreadable or that of a derivative.
    """
    if not root.is_dir():
        raise UsageError(f"{shown(root)}: no such folder.", "Check the name of BIDS_DIR.")
    require_fetched(root / "dataset_description.json")
    described = description(root)
    if not described.get("BIDSVersion"):
        raise UsageError(
            "the data set has no dataset_description.json with a BIDSVersion in it.",
            "Give the root of a BIDS data set, or leave this check out:  --skip-bids-validation",
        )
    if described.get("DatasetType") == "derivative":
        raise UsageError(
            "the data set is a derivative one.",
            "Give the raw one, or leave this check out:  --skip-bids-validation",
        )


def description(root: Path) -> dict[str, Any]:
    """dataset_description.json; empty where it is missing or no JSON object."""
    try:
        content = json.loads((root / "dataset_description.json").read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _units_of(folder: Path, wanted: Wanted, participants: PeopleTable, notes: list[str]) -> Iterator[Unit]:
    subject = folder.name.removeprefix("sub-")
    sessions = PeopleTable.read(
        folder / f"{folder.name}_sessions.tsv", "session_id", [folder.parent / "sessions.json"]
    )
    person = Person(folder.name, participants, sessions)
    chosen = {_bare(s, "ses") for s in wanted.sessions}
    for place in (folder, *_labelled(folder, "ses", notes)):
        session = None if place == folder else place.name.removeprefix("ses-")
        if chosen and session not in chosen:
            continue
        unit = Unit(subject, session, ())
        if scans := tuple(_scans(place / "anat", unit.name, wanted, notes)):
            age, site, gaps = person.at(session and place.name)
            yield replace(unit, scans=scans, age=age, site=site, notes=gaps)


def _scans(anat: Path, start: str, wanted: Wanted, notes: list[str]) -> Iterator[Path]:
    """The wanted scans of a folder. A link to content that was not fetched counts: its row will say so."""
    try:
        names = sorted(p.name for p in anat.iterdir() if _T1W.search(p.name) and not p.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        notes.append(f"{start}: its folder anat cannot be listed ({error.strerror})")
        return
    for name in names:
        path = anat / name
        if not name.startswith(f"{start}_"):
            notes.append(f"{name}: not named for {start}, left out")
        elif name.endswith(".nii") and f"{name}.gz" in names:
            notes.append(f"{name}: there is a {name}.gz, too, which is taken")
        elif entities(name).get("part") not in _NO_MAGNITUDE and wanted.takes(path):
            yield path


def _subjects(root: Path, asked: Iterable[str]) -> list[Path]:
    """Folders of the participants, sorted; only those asked for. Raises UsageError where one is not there."""
    found = _labelled(root, "sub")
    labels = dict.fromkeys(_bare(label, "sub") for label in asked)
    missing = [label for label in labels if label not in {_bare(p.name, "sub") for p in found}]
    if missing:
        raise UsageError(
            f"the data set has no {', '.join(f'sub-{label}' for label in missing)}.",
            "Check --participant-label.",
        )
    return [p for p in found if not labels or _bare(p.name, "sub") in labels]


def _labelled(folder: Path, prefix: str, notes: list[str] | None = None) -> list[Path]:
    """Folders PREFIX-LABEL in `folder`, sorted.

    A folder that cannot be listed has none, which `notes` then says; without notes it raises UsageError.
    """
    try:
        found = sorted(p for p in folder.iterdir() if p.name.startswith(f"{prefix}-") and p.is_dir())
    except OSError as error:
        if notes is None:
            raise UsageError(
                f"the data set cannot be listed ({error.strerror}).", "Check its name and permissions."
            ) from error
        notes.append(f"{folder.name}: the folder cannot be listed ({error.strerror})")
        return []
    return [p for p in found if _LABEL.fullmatch(_bare(p.name, prefix))]


def _bare(label: str, prefix: str) -> str:
    return label.removeprefix(f"{prefix}-")


def _same(found: str | None, wanted: str | None) -> bool:
    """Entity values are equal; indices are numbers, so that run 1 is run 01."""
    if found is None or wanted is None:
        return found is wanted
    if wanted == ANY:
        return True
    return found == wanted or (found.isdigit() and wanted.isdigit() and int(found) == int(wanted))
