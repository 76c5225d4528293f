"""Participants tables: the one reader that runs, BIDS, training and calibration share."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from hz_runtime.errors import UsageError

T = TypeVar("T")


def read_rows(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """(columns, rows) of a tab-separated table: columns in lower case, in a row the values that are known.

    A quote is a character like any other, as in BIDS, except around a whole cell. Raises UsageError.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as lines:
            # Not the csv module's own quoting: a comment that begins with a quote would swallow rows.
            cells = [
                [_unquoted(cell) for cell in row]
                for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
                if row
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{path.name}: cannot be read as a table: {why}.",
            "Give a tab-separated participants.tsv in UTF-8.",
        ) from error
    columns = tuple(cell.lower() for cell in cells[0]) if cells else ()
    rows = [
        {column: cell for column, cell in zip(columns, row, strict=False) if cell not in ("", "n/a")}
        for row in cells[1:]
    ]
    return columns, rows


def _unquoted(cell: str) -> str:
    text = cell.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    return text[1:-1].strip() if quoted else text


def years(text: str | None) -> float | None:
    """An age as a table has it; None where it is unknown or no number, as 89+."""
    try:
        age = float(text or "")
    except ValueError:
        return None
    return age if math.isfinite(age) else None


def certain(found: Mapping[str, set[T]]) -> dict[str, T]:
    """What a table's rows agree on: the keys with one value."""
    return {key: next(iter(values)) for key, values in found.items() if len(values) == 1}
