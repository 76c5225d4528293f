"""The inputs of a batch: files, folders and patterns become a list of scans with unique names.

Names are decided here once, before anything is read, so that a result's name depends on the list of
inputs alone and never on which scan finished first.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.batch.folder_lock import LOCK_NAME
from hz_runtime.errors import HzError, UnreadableScan, UsageError
from hz_runtime.io.atomic import printable
from hz_runtime.io.scan_files import find_scans
from hz_runtime.io.volume import is_scan_name, stem

if TYPE_CHECKING:
    from hz_runtime.dicom.scans import DicomScans

MAX_NAME_BYTES = 150  # leaves room for entities, suffix and a temp name within 255 bytes
_PATTERN = re.compile(r"[*?\[]")
_RESULTS = (  # how outputs end, see `output_names.suffix`
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
    A folder that cannot be listed is a note, and the rest is taken.
    Raises UsageError when nothing is left, or when a result would overwrite an input.
    """
    texts = [os.fspath(i) for i in inputs]
    found: dict[Path, Path] = {}  # absolute path -> the root it was found under
    faults: dict[Path, HzError] = {}
    notes: list[str] = []
    for text in texts:
        unreadable: list[str] = []
        hits = list(_expand(text, out, unreadable.append))
        if converted is not None and converted.takes(text, [path for path, _ in hits]):
            series, unreadable = converted.take(text)  # whose lines name no folder: it may be a patient's
            hits = [(path, path.parent) for path in series]
            faults.update((path, fault) for path, fault in series.items() if fault is not None)
        notes += unreadable
        if not hits:
            notes.append(f"{_shown(text)}: no scan found there")
        for path, root in hits:
            found.setdefault(path, root)
    if not any(os.path.lexists(p) or p in faults for p in found):
        raise _nothing(texts, notes, converted is not None)
    scans = _named(found)
    if faults:
        scans = tuple(replace(scan, fault=faults.get(scan.path)) for scan in scans)
    _refuse_overwriting(scans, out)
    return Inputs(scans, tuple(notes))


def _nothing(texts: Sequence[str], notes: Sequence[str], dicom: bool) -> UsageError:
    asked = ", ".join(map(_shown, texts)) or "no input given"
    closed = "; ".join(note for note in notes if not note.endswith("no scan found there"))
    more, hint = (", DICOM", "") if dicom else ("", "  (DICOM:  hz-run --prepare FOLDER)")
    return UsageError(
        f"no scan found: {asked}{f' ({closed})' if closed else ''}.",
        f"Give .nii, .nii.gz or .mgz scans{more}, or folders of them, outside the --out folder.{hint}",
    )


def _expand(text: str, out: Path, unreadable: Callable[[str], None]) -> Iterator[tuple[Path, Path]]:
    """(scan, root) pairs of one INPUT; the root is what its label is relative to.

    unreadable : called with a line for every folder that cannot be listed.
    """
    path = Path(os.path.abspath(text))
    if path.is_dir():
        yield from ((p, path) for p in _walk(path, out, unreadable))
    elif not os.path.lexists(path) and _PATTERN.search(text):
        for hit in sorted(glob.glob(text, recursive=True)):
            match = Path(os.path.abspath(hit))
            if match.is_dir():
                yield from ((p, match.parent) for p in _walk(match, out, unreadable))
            elif is_scan_name(match) and not match.name.startswith(".") and not match.is_relative_to(out):
                yield match, match.parent
    else:
        yield path, path.parent


def _walk(folder: Path, out: Path, unreadable: Callable[[str], None]) -> Iterator[Path]:
    """Scans below `folder`, without folders that hz-run wrote."""
    if folder == out:
        return

    def enter(path: Path) -> bool:
        return path != out and not os.path.lexists(path / LOCK_NAME)

    yield from find_scans(folder, unreadable, enter)


def _shown(text: str) -> str:
    """A path as messages show it: as given when relative, its last part when absolute."""
    return printable(Path(text).name if os.path.isabs(text) else text)


def _named(found: Mapping[Path, Path]) -> tuple[InputScan, ...]:
    """Give every path a unique label and output name, taking in parent folders only where needed."""
    paths = list(found)
    bases = _bases(paths)
    labels = _unique(paths, lambda p, depth: _tail(p, found[p], depth))
    names = _unique(paths, lambda p, depth: _output_name(p, bases[p], depth))
    return tuple(InputScan(p, labels[p], names[p]) for p in paths)


def _bases(paths: Sequence[Path]) -> dict[Path, str]:
    """Stems without _T1w; neighbours that share one (T1.nii, T1.nii.gz) get a hash of their file name."""
    bases = {p: printable(stem(p)).removesuffix("_T1w").lstrip(".") or "scan" for p in paths}
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
    return printable("/".join(path.parts[1:][-shown:]))


def _output_name(path: Path, base: str, depth: int) -> str:
    """Start of the output names: `base` after `depth` parent folders' names."""
    parents = path.parts[1:-1]
    near = parents[max(0, len(parents) - depth) :]
    name = "_".join([*(re.sub(r"[^A-Za-z0-9.+-]+", "-", printable(p)) for p in near), base])
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
