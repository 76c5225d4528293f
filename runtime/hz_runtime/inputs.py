"""What to process: files, folders and patterns become a list of scans with unique names.

Names are decided here once, before anything is read, so that a result's name depends on the list of
inputs alone and never on which scan finished first.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hz_runtime.errors import HzError, UnreadableScan, UsageError
from hz_runtime.volume import is_scan_name, stem

if TYPE_CHECKING:
    from hz_runtime.dicom.scans import DicomScans

LOCK_NAME = ".hz.lock"  # also marks a folder as one that hz-run wrote: never searched for inputs
MAX_NAME_BYTES = 150  # leaves room for entities, suffix and a temp name within 255 bytes
_PATTERN = re.compile(r"[*?\[]")
T = TypeVar("T")
_RESULTS = (  # how outputs end, see `stages.suffix`
    re.compile(r"_desc-harmonized_T1w\.nii\.gz$"),
    re.compile(r"_space-[A-Za-z0-9]+_res-[0-9x]+_desc-harmonized_T1w\.nii\.gz$"),
)


@dataclass(frozen=True)
class InputScan:
    """One scan to process.

    path : absolute path.  label : how results name it, relative and unique; never absolute.
    name : what its output names start with, unique in a run.
    fault : why there is no scan to read, of DICOM that could not be converted; then no file is at `path`.
    """

    path: Path
    label: str
    name: str
    fault: HzError | None = None

    def check(self) -> None:
        """Raise `fault`, or UnreadableScan where no file is at `path`."""
        if self.fault is not None:
            raise self.fault
        if not self.path.exists():
            what = "a link to a file that is not here" if self.path.is_symlink() else "no such file"
            raise UnreadableScan(f"{self.path.name}: {what}.", "Check the name, or fetch the file's content.")
        if not self.path.is_file():
            raise UnreadableScan(f"{self.path.name}: not a file.", "Give a .nii, .nii.gz or .mgz scan.")


@dataclass(frozen=True)
class Inputs:
    """The scans of a run, in order, and what the user should hear about the list."""

    scans: tuple[InputScan, ...]
    notes: tuple[str, ...] = ()


def collect(
    inputs: Sequence[str | os.PathLike[str]], out: Path, converted: DicomScans | None = None
) -> Inputs:
    """Expand files, folders (recursively, scan names only) and patterns, in the order given.

    Files named outright are always taken, so that one that is no scan gets a row that says why.
    Folders and patterns give scan names only, hidden files and the outputs of hz-run left out.
    converted : takes DICOM, too: archives, DICOM files, and folders without scan names; None does not.
    Raises UsageError when nothing is left, or when a result would overwrite an input.
    """
    found: dict[Path, Path] = {}  # absolute path -> the root it was found under
    faults: dict[Path, HzError] = {}
    notes: list[str] = []
    for text in (os.fspath(i) for i in inputs):
        hits = list(_expand(text, out))
        if converted is not None and converted.takes(text, [path for path, _ in hits]):
            series = converted.take(text)
            hits = [(path, path.parent) for path in series]
            faults.update((path, fault) for path, fault in series.items() if fault is not None)
        if not hits:
            notes.append(f"{_shown(text)}: no scan found there")
        for path, root in hits:
            found.setdefault(path, root)
    if not found or not any(os.path.lexists(p) or p in faults for p in found):
        more, hint = ("", "  (DICOM:  hz-run --prepare FOLDER)") if converted is None else (", DICOM", "")
        raise UsageError(
            f"no scan found: {', '.join(_shown(os.fspath(i)) for i in inputs) or 'no input given'}.",
            f"Give .nii, .nii.gz or .mgz scans{more}, or folders of them, outside the --out folder.{hint}",
        )
    scans = _named(found)
    if faults:
        scans = tuple(replace(scan, fault=faults.get(scan.path)) for scan in scans)
    _refuse_overwriting(scans, out)
    return Inputs(scans, tuple(notes))


def _expand(text: str, out: Path) -> Iterator[tuple[Path, Path]]:
    """(scan, root) pairs of one INPUT; the root is what its label is relative to."""
    path = Path(os.path.abspath(text))
    if path.is_dir():
        yield from ((p, path) for p in _walk(path, out))
    elif not os.path.lexists(path) and _PATTERN.search(text):
        for hit in sorted(glob.glob(text, recursive=True)):
            match = Path(os.path.abspath(hit))
            if match.is_dir():
                yield from ((p, match.parent) for p in _walk(match, out))
            elif is_scan_name(match) and not match.name.startswith(".") and not match.is_relative_to(out):
                yield match, match.parent
    else:
        yield path, path.parent


def _walk(folder: Path, out: Path) -> Iterator[Path]:
    """Scans below `folder`, sorted, without hidden ones and without folders that hz-run wrote."""
    for here, folders, files in os.walk(folder):
        at = Path(here)
        if at == out:
            folders.clear()
            continue
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and not os.path.lexists(at / f / LOCK_NAME)
        )
        yield from (at / f for f in sorted(files) if is_scan_name(at / f) and not f.startswith("."))


def _shown(text: str) -> str:
    """A path as messages show it: as given when relative, its last part when absolute."""
    return _clean(Path(text).name if os.path.isabs(text) else text)


def _clean(text: str) -> str:
    """Text that fits a table and any encoding: no control characters, no stray bytes."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _named(found: Mapping[Path, Path]) -> tuple[InputScan, ...]:
    """Give every path a unique label and output name, taking in parent folders only where needed."""
    paths = list(found)
    bases = _bases(paths)
    labels = _unique(paths, lambda p, depth: _tail(p, found[p], depth))
    names = _unique(paths, lambda p, depth: _output_name(p, bases[p], depth))
    return tuple(InputScan(p, labels[p], names[p]) for p in paths)


def _bases(paths: Sequence[Path]) -> dict[Path, str]:
    """Stems without _T1w; neighbours that share one (T1.nii, T1.nii.gz) get a hash of their file name."""
    bases = {p: _clean(stem(p)).removesuffix("_T1w").lstrip(".") or "scan" for p in paths}
    shared = Counter((p.parent, bases[p].casefold()) for p in paths)
    return {
        p: f"{base}-{_short_hash(os.fsencode(p.name))}" if shared[p.parent, base.casefold()] > 1 else base
        for p, base in bases.items()
    }


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:6]


def _tail(path: Path, root: Path, depth: int) -> str:
    """`path` relative to its root, or with `depth` more of its parents."""
    shown = len(path.relative_to(root).parts) + depth
    return _clean("/".join(path.parts[1:][-shown:]))


def _output_name(path: Path, base: str, depth: int) -> str:
    """Start of the output names: `base` after `depth` parent folders' names."""
    parents = path.parts[1:-1]
    near = parents[max(0, len(parents) - depth) :]
    name = "_".join([*(re.sub(r"[^A-Za-z0-9.+-]+", "-", _clean(p)) for p in near), base])
    if len(name.encode()) > MAX_NAME_BYTES:
        cut = name.encode()[: MAX_NAME_BYTES - 7].decode("utf-8", "ignore")
        name = f"{cut}-{_short_hash(name.encode())}"
    return name


def _unique(paths: Sequence[Path], name: Callable[[Path, int], str]) -> dict[Path, str]:
    """Names of `paths`, each with as few parents as make it unique (upper and lower case count as one)."""
    result = {p: name(p, 0) for p in paths}
    for depth in range(1, max((len(p.parts) for p in paths), default=0)):
        counts = Counter(v.casefold() for v in result.values())
        clashing = [p for p in paths if counts[result[p].casefold()] > 1]
        if not clashing:
            return result
        result.update((p, name(p, depth)) for p in clashing)
    seen: Counter[str] = Counter()
    for p in paths:  # only names that differ in bytes that were cleaned away come here
        seen[result[p].casefold()] += 1
        if seen[result[p].casefold()] > 1:
            result[p] += f"-{seen[result[p].casefold()]}"
    return result


def _refuse_overwriting(scans: Iterable[InputScan], out: Path) -> None:
    labels = {scan.name: scan.label for scan in scans}
    for taken in (scan.path.name for scan in scans if scan.path.parent == out):
        for result in _RESULTS:
            label = labels.get(result.sub("", taken)) if result.search(taken) else None
            if label is not None:
                raise UsageError(
                    f"the result for {label} would overwrite the input {taken}.",
                    "Choose another folder with --out DIR.",
                )


@dataclass(frozen=True)
class KnownAges:
    """Ages and sites by file or participant, from a participants.tsv. Ambiguous keys hold none.

    by_file, site_by_file : by the end of a scan's path, "sub-1.nii" or "A/sub-1.nii"; and, where a table
    names folders, by "/" and the name alone, for scans that lie elsewhere now.
    only : age of a run's only scan.  table : name of the file they come from, "" for none.
    """

    by_file: Mapping[str, float] = field(default_factory=dict)
    by_participant: Mapping[str, float] = field(default_factory=dict)
    only: float | None = None
    site_by_file: Mapping[str, str] = field(default_factory=dict)
    site_by_participant: Mapping[str, str] = field(default_factory=dict)
    table: str = ""

    def check(self, scans: int) -> None:
        """Raise UsageError where the age of one scan meets several."""
        if self.only is not None and scans != 1:
            raise UsageError(
                "--age is for a single scan.", "For several give their ages in a table:  --participants TSV"
            )

    def of(self, scan: InputScan) -> float | None:
        """Age in years of the scan's person, or None. File names win over participants."""
        if self.only is not None:
            return self.only
        return _entry(scan, self.by_file, self.by_participant)

    def site_of(self, scan: InputScan) -> dict[str, str]:
        """{"site": name} of the scan's site, looked up as its age is; {} where none is known."""
        site = _entry(scan, self.site_by_file, self.site_by_participant)
        return {} if site is None else {"site": site}

    def gaps(self, scans: Sequence[InputScan]) -> tuple[str, ...]:
        """What the user should hear where the table has no age for some of the scans."""
        without = [scan.label for scan in scans if self.of(scan) is None] if self.table else []
        if not without:
            return ()
        which = f"{len(without)} of {len(scans)} scans, {without[0]} first"
        return (f"{self.table}: no age for {which}; see its columns file, participant_id and age",)

    @classmethod
    def from_tsv(cls, path: Path) -> KnownAges:
        """Read columns `age`, `file` (or filename) and/or `participant_id`, and `site` where there is one.

        Raises UsageError.
        """
        columns, rows = read_rows(path)
        file_column = "file" if "file" in columns else "filename"
        if not rows or "age" not in columns or not {file_column, "participant_id"} & set(columns):
            raise UsageError(
                f"{path.name}: needs a column age and a column file or participant_id; "
                f"found: {', '.join(columns) if rows else 'no rows'}.",
                "Write it tab-separated, one scan or participant a line.",
            )
        found: tuple[dict[str, set[float]], ...] = ({}, {})
        places: tuple[dict[str, set[str]], ...] = ({}, {})
        for row in rows:
            file, person = row.get(file_column, ""), row.get("participant_id", "")
            parts = [part for part in Path(file).parts if part not in ("/", "..")]
            by_name = {f"/{parts[-1]}"} if len(parts) > 1 else set()
            keys = {"/".join(parts), *by_name} - {""}, {person, person.removeprefix("sub-")} - {""}
            age, site = years(row.get("age")), _clean(row.get("site", ""))
            for ages, sites, names in zip(found, places, keys, strict=True):
                for name in names:
                    if age is not None:
                        ages.setdefault(name, set()).add(age)
                    if site:
                        sites.setdefault(name, set()).add(site)
        return cls(
            certain(found[0]),
            certain(found[1]),
            site_by_file=certain(places[0]),
            site_by_participant=certain(places[1]),
            table=path.name,
        )


def _entry(scan: InputScan, by_file: Mapping[str, T], by_participant: Mapping[str, T]) -> T | None:
    """What a table holds for a scan: under its path, else its file's name, else its participant's."""
    parts = scan.path.parts[1:] if scan.path.is_absolute() else scan.path.parts
    keys = ["/".join(parts[start:]) for start in range(len(parts))]
    if "/" not in scan.label:  # else its folder is told, and is not the one that the table names
        keys.append(f"/{scan.path.name}")
    for key in keys:
        if key in by_file:
            return by_file[key]
    words = [stem(scan.path), stem(scan.path).split("_")[0]]
    words += [p for p in reversed(scan.label.split("/")[:-1]) if p.startswith("sub-")]
    for word in words:
        for key in (word, word.removeprefix("sub-")):
            if key in by_participant:
                return by_participant[key]
    return None


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
