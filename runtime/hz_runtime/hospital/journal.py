"""What the bridge remembers, on disk: how far it has read, and what became of every series.

An SQLite file whose writes survive a kill at any moment. Series are known by Orthanc's own hashes, and by the
names that hz gives them: nothing in it is a patient's.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hz_runtime.errors import HzError

NAME = "journal.sqlite3"
WAITING = ("new", "pending", "storing")  # the other states are ends
ENDS = ("done", "passed", "discarded", "aside", "own")
_KEPT_SECONDS = 400 * 86400.0
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_ROOM = "Make room on the disk of --state."
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS series (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL DEFAULT 'new',
    look INTEGER NOT NULL DEFAULT 1,
    images TEXT NOT NULL DEFAULT '',
    tries INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    text TEXT NOT NULL DEFAULT '',
    stored TEXT NOT NULL DEFAULT '[]',
    changed REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS waiting ON series (state, due);
"""


class NoRoom(HzError):
    """The disk of the bridge's state is full: nothing was written, and all can be tried again once there is
    room."""


@dataclass(frozen=True)
class Entry:
    """A series.

    state : new, pending, storing; or done, passed (no T1-weighted head by its header), discarded, aside; or
    own, which hz made.
    images : digest of the images it had when it was last looked at.
    tries, due : how often it failed, and when it is to be tried again.
    text : what is to be said of it.  stored : Orthanc's series that hold its results.
    """

    id: str
    state: str
    images: str
    tries: int
    due: float
    text: str
    stored: tuple[str, ...]
    changed: float


class Journal:
    """The journal in a folder, which is made. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                folder / NAME, timeout=30.0, isolation_level=None, check_same_thread=False
            )
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")
            self._file.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise HzError(
                f"the journal cannot be opened ({error}).", "Look at the folder of --state, and its disk."
            ) from error

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing. Raises NoRoom, HzError."""
        try:
            with self._lock:
                self._file.execute("BEGIN IMMEDIATE")
                try:
                    yield self._file
                    self._file.execute("COMMIT")
                except BaseException:
                    if self._file.in_transaction:  # a full disk ends some transactions by itself
                        self._file.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) in _FULL:
                raise NoRoom(f"the journal cannot be written ({error}).", _ROOM) from error
            raise HzError(f"the journal cannot be written ({error}).", _ROOM) from error

    def _read(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows. Raises HzError where the file is damaged."""
        try:
            with self._lock:
                return self._file.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _damaged(str(error)) from error

    @property
    def cursor(self) -> int | None:
        """The last change that was read, or None where nothing was."""
        value = self.fact("cursor")
        try:
            return None if value is None else int(value)
        except ValueError:
            raise _damaged("no number of a change") from None

    def fact(self, key: str) -> str | None:
        rows = self._read("SELECT value FROM facts WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def remember(self, **facts: object) -> None:
        with self._writing() as file:
            file.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(key, str(value)) for key, value in facts.items()],
            )

    def read_to(self, cursor: int, changed: Iterable[str]) -> None:
        """The changes up to `cursor` were read, and these series are to be looked at: both or neither."""
        with self._writing() as file:
            for one in changed:
                file.execute(
                    "INSERT INTO series (id, changed) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET look = 1",
                    (one, time.time()),
                )
            file.execute("INSERT OR REPLACE INTO facts VALUES ('cursor', ?)", (str(cursor),))

    def to_look_at(self) -> list[Entry]:
        return self._entries("look = 1 ORDER BY changed")

    def due(self, state: Literal["pending", "storing"], now: float, most: int) -> list[Entry]:
        """Series in a state whose turn it is, at most `most`."""
        return self._entries(
            "state = ? AND due <= ? AND look = 0 ORDER BY due, changed LIMIT ?", (state, now, most)
        )

    def next_due(self) -> float | None:
        (row,) = self._read("SELECT MIN(due) FROM series WHERE state IN ('pending', 'storing')")
        return None if row[0] is None else float(row[0])

    def changed_since(self, moment: float) -> list[Entry]:
        """Series that came to an end since then."""
        return self._entries("look = 0 AND changed >= ? AND state IN (?, ?, ?, ?)", (moment, *ENDS[:4]))

    def entry(self, series: str) -> Entry | None:
        found = self._entries("id = ?", (series,))
        return found[0] if found else None

    def aside(self) -> list[Entry]:
        return self._entries("state = 'aside' ORDER BY changed")

    def counts(self) -> dict[str, int]:
        rows = self._read("SELECT state, COUNT(*) FROM series GROUP BY state ORDER BY state")
        return {str(state): int(count) for state, count in rows}

    def set(self, series: str, state: str, **more: str | int | float | Sequence[str]) -> None:
        """Put a series into a state, with other columns."""
        values: Mapping[str, object] = {
            "state": state,
            "changed": time.time(),
            **{key: value if isinstance(value, str | int | float) else json.dumps(list(value))
               for key, value in more.items()},
        }  # fmt: skip
        columns = ", ".join(f"{key} = ?" for key in values)
        with self._writing() as file:
            file.execute(f"UPDATE series SET {columns} WHERE id = ?", (*values.values(), series))

    def own(self, made: Iterable[str]) -> None:
        """These series are results, and no sources."""
        with self._writing() as file:
            file.executemany(
                "INSERT OR REPLACE INTO series (id, state, look, changed) VALUES (?, 'own', 0, ?)",
                [(one, time.time()) for one in made],
            )

    def looked_at(self, series: str) -> None:
        with self._writing() as file:
            file.execute("UPDATE series SET look = 0 WHERE id = ?", (series,))

    def look_again(self, series: str) -> None:
        with self._writing() as file:
            file.execute("UPDATE series SET look = 1 WHERE id = ?", (series,))

    def forget(self, series: str) -> None:
        with self._writing() as file:
            file.execute("DELETE FROM series WHERE id = ?", (series,))

    def forget_old(self) -> None:
        """Forget what ended long ago: should it come again, its results are the same objects."""
        with self._writing() as file:
            file.execute(
                "DELETE FROM series WHERE changed < ? AND state IN (?, ?, ?, ?, ?)",
                (time.time() - _KEPT_SECONDS, *ENDS),
            )

    def _entries(self, where: str, values: Sequence[object] = ()) -> list[Entry]:
        rows = self._read(
            f"SELECT id, state, images, tries, due, text, stored, changed FROM series WHERE {where}", values
        )
        try:
            return [
                Entry(
                    str(one), state, images, int(tries), float(due), str(text), _names(stored), float(changed)
                )
                for one, state, images, tries, due, text, stored, changed in rows
            ]
        except (ValueError, TypeError, RecursionError):
            raise _damaged("a series in another form") from None


def _names(stored: str) -> tuple[str, ...]:
    return tuple(str(one) for one in json.loads(stored))


def _damaged(what: str) -> HzError:
    return HzError(
        f"the journal is damaged ({what}).",
        "Move the folder of --state away and begin anew: what is stored twice is the same objects.",
    )
