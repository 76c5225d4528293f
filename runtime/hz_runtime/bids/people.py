"""What a BIDS data set's tables say about the people in it: ages and sites, by participant and session.

The tables are participants.tsv and sub-*_sessions.tsv. What they do not say clearly is not guessed: it is
left out, and a note says why. Which scans there are is `layout`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hz_runtime.errors import UsageError
from hz_runtime.io.participants import T, Table, read_table

_PREFIXES = {"participant_id": "sub", "session_id": "ses"}


@dataclass(frozen=True)
class Entry:
    """A row about a person.

    place : table and line, for messages.  participant, session : labels with sub- and ses-, or "".
    age : years.  aged : whether its age is more than n/a.  fault : why an age that is given is not taken.
    """

    place: str
    participant: str
    session: str
    age: float | None
    aged: bool
    site: str
    fault: str = ""


@dataclass(frozen=True)
class PeopleTable:
    """name : of the file.  entries : its rows.  fault : why it cannot be used at all.

    columns : its column names; empty where there is no such table, or it cannot be used.
    """

    name: str
    entries: tuple[Entry, ...] = ()
    columns: tuple[str, ...] = ()
    fault: str = ""

    @classmethod
    def read(cls, path: Path, key: str, dictionaries: Iterable[Path] = ()) -> PeopleTable:
        """A table whose rows are named by the column `key`.

        dictionaries : data dictionaries that hold where the table's own gives no unit of the ages.
        """
        if not os.path.lexists(path):
            return cls(path.name)
        try:
            table = read_table(path, dictionaries)
            table.need(key)
        except UsageError as error:
            remedy = " ".join(error.remedy.split())
            return cls(path.name, fault=f"{error.message} No age or site is taken from it. {remedy}")
        return cls(path.name, tuple(_entries(table)), table.columns)

    def of(self, participant: str) -> tuple[Entry, ...]:
        """The rows of one participant, sub-LABEL."""
        return tuple(entry for entry in self.entries if entry.participant == participant)


@dataclass(frozen=True)
class Person:
    """One participant's rows.

    name : sub-LABEL.  participants : of the whole data set.  sessions : the participant's own table.
    """

    name: str
    participants: PeopleTable
    sessions: PeopleTable

    def at(self, session: str | None) -> tuple[float | None, str | None, tuple[str, ...]]:
        """(age in years, site, notes on what is not taken) at a session, ses-LABEL; None: there are none.

        A session's rows come before those of no session. Rows of one rank that disagree say nothing.
        """
        rows = self.participants.of(self.name)
        # A row of another session says nothing here; where there are no sessions, no row is of another one.
        of_any = [row for row in rows if session is None or not row.session]
        of_this = [row for row in (*rows, *self.sessions.entries) if session and row.session == session]
        age, site = None, None
        for layer in (of_any, of_this):
            age = _agreed((row.age for row in layer if row.aged), age)
            site = _agreed((row.site for row in layer if row.site), site)
        notes = [table.fault for table in (self.participants, self.sessions) if table.fault]
        notes += dict.fromkeys(row.fault for row in (*of_any, *of_this) if row.fault)
        if age is None and not notes:
            notes += self._gap(session, of_any, of_this)
        return age, site, tuple(notes)

    def _gap(self, session: str | None, of_any: Sequence[Entry], of_this: Sequence[Entry]) -> list[str]:
        """Why there is no age, in a line; nothing where a row says n/a, or there is no table."""
        aged = [row for row in of_this if row.aged] or [row for row in of_any if row.aged]
        if aged:
            return [f"{' and '.join(row.place for row in aged[:2])}: ages that differ, none is taken."]
        table = self.participants
        if not table.columns:
            return []
        if "age" not in table.columns:
            return [f"{table.name}, line 1: lacks the column age; it has {', '.join(table.columns)}."]
        if not (of_any or of_this):
            return [f"{table.name}: no row for {' '.join(filter(None, (self.name, session)))}, so no age."]
        return []


def _agreed(values: Iterable[T | None], before: T | None) -> T | None:
    """The one value of a layer, None where it has several, `before` where it has none."""
    found = set(values)
    return before if not found else found.pop() if len(found) == 1 else None


def _entries(table: Table) -> Iterator[Entry]:
    for row in table.rows:
        labels = {
            column: f"{prefix}-{label.removeprefix(f'{prefix}-')}" if (label := row.get(column)) else ""
            for column, prefix in _PREFIXES.items()
        }
        age, fault = None, ""
        try:
            age = table.age(row)
        except UsageError as error:
            fault = error.message
        yield Entry(
            f"{table.name}, line {row.line}",
            labels["participant_id"],
            labels["session_id"],
            age,
            bool(row.get("age")),
            row.get("site"),
            fault,
        )
