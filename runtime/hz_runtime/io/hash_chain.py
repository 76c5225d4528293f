"""Append-only files of JSON lines, each of which holds the hash of the one before.

A line is a record: its number `n` from 1 on, what was appended, `previous` (the hash of the record before, 64
zeros for the first) and `sha256`, of all this as JSON without blanks. Beside FILE, FILE.head names the last
record, so that a file from whose end lines were cut is known, too. Several processes append in turns (flock).

A process that dies while it writes leaves a torn end. It stays in the file: the next record follows it, and
its key `torn` is the hash of those bytes, so that nobody can add or alter one later.

Nothing here knows what the records are about. Whoever can rewrite the whole file and its head can forge
both: a copy of the last hash, kept elsewhere, is what tells.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import atomic_write_bytes, shown

FIRST = "0" * 64
MAX_LINE_BYTES = 1 << 20
_OWN = ("n", "previous", "sha256", "torn")
_VERIFY = "Find out who wrote to it:  hz-run audit verify FILE  Until then name another file."


@dataclass(frozen=True)
class Link:
    """Where a chain stands: the number and the hash of its last record, and the hash of the one before."""

    n: int
    sha256: str
    previous: str = ""


@dataclass(frozen=True)
class Chain:
    """A chain that holds.

    last : its last record.  torn : how many torn ends there are, what crashes left.
    ends_torn : whether one is at the end now, which the next record will account for.
    """

    last: Link
    torn: int
    ends_torn: bool


def append(path: Path, record: Mapping[str, Any]) -> Link:
    """Append a record, JSON types but for the keys of this module, and sync it to the disk.

    Raises UsageError where the file cannot be opened or locked, HzError where it does not end as its head
    says, or is not written whole.
    """
    if taken := [key for key in _OWN if key in record]:
        raise ValueError(f"a record may not have the key {taken[0]!r}")
    with _locked(path) as handle:
        head = _head_of(path, empty=os.fstat(handle).st_size == 0)
        last, torn = _end(handle, path)
        if not _fits(last, head):
            raise HzError(
                f"{shown(path)} was cut or changed: its last whole record is {last.n}, {shown(_head(path))} "
                f"says {head.n}.",
                _VERIFY,
            )
        if last.n != head.n:  # a crash held the head up; a second one now would leave it two behind
            _write_head(path, last)
        body: dict[str, Any] = {"n": last.n + 1, **record, "previous": last.sha256}
        lead = b"\n" if torn and not torn.endswith(b"\n") else b""
        if torn:
            body["torn"] = hashlib.sha256(torn + lead).hexdigest()
        body["sha256"] = _hash(body)
        _write(handle, lead + _line(body), path)
        link = Link(last.n + 1, body["sha256"], last.sha256)
        _write_head(path, link)
    return link


def verify(path: Path) -> Chain:
    """Read a whole chain. Raises HzError, naming the line, for an edit, a cut or another order anywhere."""
    where = shown(path)
    last, torn, pieces, changed = Link(0, FIRST), 0, b"", 0
    with _opened(path, os.O_RDONLY) as stream, os.fdopen(os.dup(stream), "rb") as lines:
        _flock(stream, path, shared=True)
        head = _read_head(path)
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is None:
                changed = changed or number
                pieces += line
                continue
            torn_here = hashlib.sha256(pieces).hexdigest() if pieces else None
            if record.get("torn") != torn_here:
                raise _broken(where, changed or number, "it was changed after it was written")
            if record["previous"] != last.sha256 or record["n"] != last.n + 1:
                what = f"record {record['n']} stands where {last.n + 1} is to be"
                raise _broken(
                    where, number, what if record["n"] != last.n + 1 else "it follows another record"
                )
            last, torn = _link(record), torn + bool(pieces)
            pieces, changed = b"", 0
    if head is None:
        raise HzError(
            f"{where}: {shown(_head(path))}, which says where it ends, is not there or changed.", ""
        )
    if not _fits(last, head):
        what = f"it ends with record {last.n} where {head.n} is to be the last"
        raise (
            _broken(where, changed, f"{what}, or that one was changed")
            if changed
            else HzError(f"{where}: {what}: it was cut or changed.", "")
        )
    return Chain(last, torn, bool(pieces))


def _fits(last: Link, head: Link) -> bool:
    """Whether a file may end so: as its head says, or one further, where a crash held the head up."""
    if last.n == head.n:
        return last.sha256 == head.sha256
    return last.n == head.n + 1 and last.previous == head.sha256


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a file, as they stand there; `verify` says whether they hold."""
    with open(path, "rb") as lines:
        yield from filter(None, map(_record, lines))


def _broken(where: str, line: int, what: str) -> HzError:
    return HzError(f"{where}: line {line} does not hold: {what}.", "")


def _hash(body: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in body.items() if key != "sha256"}
    return hashlib.sha256(_line(kept)).hexdigest()


def _line(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _record(line: bytes) -> dict[str, Any] | None:
    """The record that a line is, byte for byte; None where it is none."""
    try:
        found = json.loads(line)
        good = isinstance(found, dict) and type(found["n"]) is int and isinstance(found["previous"], str)
        return found if good and _line(found) == line and found["sha256"] == _hash(found) else None
    except (ValueError, KeyError, RecursionError):
        return None


def _link(record: Mapping[str, Any]) -> Link:
    return Link(record["n"], record["sha256"], record["previous"])


def _end(handle: int, path: Path) -> tuple[Link, bytes]:
    """The last whole record, and the bytes behind it."""
    size, reach = os.fstat(handle).st_size, 1 << 16
    while True:
        start = max(0, size - reach)
        data = os.pread(handle, size - start, start)
        first = 0 if start == 0 else data.find(b"\n") + 1
        end = len(data)
        while end > first or (start == 0 and end > 0):
            newline = data.rfind(b"\n", 0, end)
            if newline < first:
                break
            begin = data.rfind(b"\n", 0, newline) + 1
            record = _record(data[begin : newline + 1]) if begin >= first else None
            if record is not None:
                return _link(record), data[newline + 1 :]
            end = newline
        if start == 0:
            return Link(0, FIRST), data
        if reach > 8 * MAX_LINE_BYTES:
            raise HzError(f"{shown(path)} does not end in records of an audit.", "Name another file.")
        reach *= 4


def _write(handle: int, data: bytes, path: Path) -> None:
    if len(data) > MAX_LINE_BYTES:
        raise ValueError("a record is longer than a line may be")
    try:
        written = os.write(handle, data)
        os.fsync(handle)
    except OSError as error:
        raise HzError(
            f"{shown(path)}: {error.strerror}.", "Make room, and run the same command again."
        ) from None
    if written != len(data):
        raise HzError(f"{shown(path)}: the disk is full.", "Make room, and run the same command again.")


def _head(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _write_head(path: Path, link: Link) -> None:
    atomic_write_bytes(_head(path), f"{link.n} {link.sha256}\n".encode())


def _read_head(path: Path) -> Link | None:
    try:
        with open(_head(path), "rb") as stream:
            data = stream.read(200)
        n, sha = data.decode("ascii").split(" ")
        link = Link(int(n), sha.rstrip("\n"))
    except (OSError, ValueError):
        return None
    return link if data == f"{link.n} {link.sha256}\n".encode() and len(link.sha256) == 64 else None


def _head_of(path: Path, empty: bool) -> Link:
    """The head; that of an empty file is written before its first record."""
    found = _read_head(path)
    if found is None and empty and not _head(path).exists():
        found = Link(0, FIRST)
        _write_head(path, found)
    if found is None:
        raise HzError(f"{shown(path)}: {shown(_head(path))} is not there, or no head of an audit.", _VERIFY)
    return found


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        handle = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)
    except OSError as error:
        raise UsageError(f"{shown(path)}: {error.strerror}.", "Name a file that can be opened.") from None
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    with _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as handle:
        _flock(handle, path)
        yield handle


def _flock(handle: int, path: Path, shared: bool = False) -> None:
    """Wait for the file's lock, which closing the handle gives back, and so does the end of the process."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        raise UsageError(
            f"{shown(path)} cannot be locked ({error.strerror}).", "Name a file on a disk of this machine."
        ) from None
