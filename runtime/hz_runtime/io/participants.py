"""Participants tables: the one reader that runs, BIDS, training and calibration share.

A table is tab-separated UTF-8 with a line of column names, as BIDS has it; a JSON file of the same name
beside it, its data dictionary, may say the unit of the ages. What the rows are for is not known here.
"""

from __future__ import annotations

import codecs
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hz_runtime.errors import UsageError
from hz_runtime.io.annex import require_fetched
from hz_runtime.io.atomic import printable

T = TypeVar("T")
OLDEST = 120.0  # years; what is above is another unit, or a slip
_UNKNOWN = ("", "n/a")
_PER_YEAR = {
    1.0: ("y", "yr", "yrs", "year", "years", "a"),
    12.0: ("mo", "mos", "month", "months"),
    365.25 / 7: ("w", "wk", "wks", "week", "weeks"),
    365.25: ("d", "day", "days"),
}
_SEPARATORS = {",": "commas", ";": "semicolons", "  ": "spaces"}  # met in place of tabs


class AgeIsNoNumber(UsageError):
    """An age such as 89+ or 31,5: no years, and nothing that makes the rest of its table doubtful."""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    line : its number in the file, from 1.  texts : its cells, in the order of the columns, as many as it has.
    known : column -> value, without those that are empty or n/a.
    """

    line: int
    texts: tuple[str, ...]
    known: Mapping[str, str]

    def get(self, column: str, default: str = "") -> str:
        return self.known.get(column, default)


@dataclass(frozen=True)
class Table:
    """name : of the file, for messages.  headings : as written.  rows : those that are not blank.

    per_year : how many of the units that its ages are in make a year; None where the data dictionary gives a
    unit that is not understood, which is `unit`.
    """

    name: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    per_year: float | None = 1.0
    unit: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The headings in lower case: what rows are asked by."""
        return tuple(heading.lower() for heading in self.headings)

    def need(self, *columns: str) -> None:
        """Raise UsageError where the table lacks one of the columns."""
        missing = [column for column in columns if column not in self.columns]
        if not missing:
            return
        wrong = [name for mark, name in _SEPARATORS.items() if mark in " ".join(self.headings)]
        how = f", separated by {wrong[0]}" if wrong and len(self.headings) == 1 else ""
        named = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        raise UsageError(
            f"{self.name}, line 1: lacks the column{'s' if len(missing) > 1 else ''} {named}; "
            f"it has {_brief(printable(', '.join(self.headings)), 300) or 'none'}{how}.",
            f"Write it tab-separated, with the columns {', '.join(columns)}.",
        )

    def age(self, row: Row) -> float | None:
        """Years, 0 to OLDEST, or None where the row has no age.

        Raises UsageError that names the line, for an age outside these bounds or in a unit that is not
        understood, AgeIsNoNumber for what is no number.
        """
        text = row.get("age")
        if text.lower() in ("", "n/a", "nan"):
            return None
        where = f"{self.name}, line {row.line}: age {_brief(text)!r}"
        try:
            age = float(text if "_" not in text else "no number")  # Python reads 3_1 as 31
        except ValueError:
            raise AgeIsNoNumber(
                f"{where} is not a number of years.", "Write 31.5, or n/a where it is unknown."
            ) from None
        if self.per_year is None:
            raise UsageError(
                f"{where} is in a unit that is not understood, {_brief(self.unit)!r}.",
                'Units are years, months, weeks or days:  {"age": {"Units": "months"}}',
            )
        age /= self.per_year
        if not 0 <= age <= OLDEST:  # an infinite one, too
            raise UsageError(
                f"{where} is not within 0 to {OLDEST:g} years.",
                f"Correct it, write n/a, or give the unit in {Path(self.name).stem}.json:  "
                '{"age": {"Units": "months"}}',
            )
        return age


def read_table(path: Path, dictionaries: Iterable[Path] = ()) -> Table:
    """A tab-separated table. A quote is a character like any other, as in BIDS, except around a whole cell.

    dictionaries : data dictionaries that hold where the table's own, the .json of its name, gives no unit.
    Raises UsageError that names the line, where there is one; also for a file of these that git-annex has not
    fetched: a dictionary that is not here may say that the ages are months.
    """
    dictionaries = (path.with_suffix(".json"), *dictionaries)
    for needed in (path, *dictionaries):
        require_fetched(needed)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path.name, error.strerror or type(error).__name__) from error
    # Not the csv module's own quoting: a comment that begins with a quote would swallow rows.
    lines = [
        (number, tuple(_unquoted(cell) for cell in line.rstrip("\n").split("\t")))
        for number, line in enumerate(io.StringIO(_text(path.name, data), newline=None), start=1)
        if line.strip()
    ]
    headings = lines[0][1] if lines else ()
    columns = [heading.lower() for heading in headings]
    rows = tuple(
        Row(number, cells, {c: v for c, v in zip(columns, cells, strict=False) if v not in _UNKNOWN})
        for number, cells in lines[1:]
    )
    per_year, unit = _age_unit(dictionaries) if "age" in columns else (1.0, "")
    return Table(path.name, headings, rows, per_year, unit)


def check_age(age: float, where: str) -> None:
    """Raise UsageError for an age in years that is outside 0 to OLDEST, or no number.

    where : what gave it, as messages begin.
    """
    if not (math.isfinite(age) and 0 <= age <= OLDEST):
        raise UsageError(
            f"{where}: {age:g} is not within 0 to {OLDEST:g} years.", "Leave it out where it is not known."
        )


def certain(found: Mapping[str, set[T]]) -> dict[str, T]:
    """What a table's rows agree on: the keys with one value."""
    return {key: next(iter(values)) for key, values in found.items() if len(values) == 1}


def _text(name: str, data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise _unreadable(f"{name}, line 1", "it is UTF-16, or no text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        why = f"the byte {data[error.start]:#04x} is not UTF-8 (Latin-1, as Excel writes?)"
        raise _unreadable(f"{name}, line {line}", why) from error


def _unreadable(where: str, why: str) -> UsageError:
    return UsageError(
        f"{where}: cannot be read as a table: {why}.",
        f"Give a tab-separated {where.split(', line ')[0]} in UTF-8.",
    )


def _brief(text: str, most: int = 40) -> str:
    """Its beginning, as far as a message needs it: a cell may hold megabytes."""
    return text if len(text) <= most else f"{text[:most]}..."


def _unquoted(cell: str) -> str:
    text = cell.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    return text[1:-1].strip() if quoted else text


def _age_unit(dictionaries: Iterable[Path]) -> tuple[float | None, str]:
    """(units a year, "") by the first dictionary that gives a unit of the age; (None, the unit) where it is
    not understood. Without one ages are in years, as in BIDS."""
    for path in dictionaries:
        try:
            columns = json.loads(path.read_text("utf-8-sig"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            return None, f"{path.name} cannot be read"
        of_age = [v for k, v in columns.items() if k.lower() == "age"] if isinstance(columns, dict) else []
        unit = of_age[0].get("Units") if of_age and isinstance(of_age[0], dict) else None
        if unit in (None, ""):
            continue
        words = str(unit).strip().lower().rstrip(".")
        for per_year, names in _PER_YEAR.items():
            if words in names:
                return per_year, ""
        return None, str(unit)
    return 1.0, ""
