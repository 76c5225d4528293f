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
from hz_runtime.dicom.folder import count_by_name, find_archives, holds_dicom, is_archive, is_dicom
from hz_runtime.errors import HzError, UnreadableScan, UnsupportedScan, UsageError
from hz_runtime.io.annex import require_fetched
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
    source : of DICOM, the archive or folder that it came from. It may name a patient: for the screen only.
    """

    path: Path
    label: str
    name: str
    fault: HzError | None = None
    source: str = ""

    def check(self) -> None:
        """Raise `fault`, or UnreadableScan where no file is at `path`."""
        if self.fault is not None:
            raise self.fault
        require_fetched(self.path, UnreadableScan)
        if not self.path.exists():
            raise UnreadableScan(f"{self.path.name}: no such file.", "Check the name.")
        if not self.path.is_file():
            raise UnreadableScan(f"{self.path.name}: not a file.", "Give a .nii, .nii.gz or .mgz scan.")


@dataclass(frozen=True)
class Note:
    """A line about the inputs.

    text : for the log.  screen : for the screen, where it names what the log does not: a name of DICOM may be
    a patient's. The same as `text` where it is left out.
    """

    text: str
    screen: str = ""

    def __post_init__(self) -> None:
        if not self.screen:
            object.__setattr__(self, "screen", self.text)


@dataclass(frozen=True)
class Inputs:
    """The scans of a run, in order, and what the user should hear about the list."""

    scans: tuple[InputScan, ...]
    notes: tuple[Note, ...] = ()


def collect(
    inputs: Sequence[str | os.PathLike[str]], out: Path, converted: DicomScans | None = None
) -> Inputs:
    """Expand files, folders (recursively, scan names only) and patterns, in the order given.

    Files named outright are always taken, so that one that is no scan gets a row that says why.
    Folders and patterns give scan names only, hidden files and the outputs of hz-run left out.
    converted : takes DICOM, too: archives, DICOM files, and folders without scan names; None does not.
    A folder that cannot be listed, and DICOM or archives that are passed over, are notes; the rest is taken.
    Raises UsageError when nothing is left, or when a result would overwrite an input.
    """
    texts = [os.fspath(i) for i in inputs]
    found: dict[Path, Path] = {}  # absolute path -> the root it was found under
    faults: dict[Path, HzError] = {}
    sources: dict[Path, str] = {}
    notes: list[Note] = []
    for text in texts:
        unreadable: list[str] = []
        hits = list(_expand(text, out, unreadable.append))
        taken = converted.take_all(text, [path for path, _ in hits]) if converted else []
        if taken:  # whose notes in the log name no folder: it may be a patient's
            given = {Path(os.path.abspath(source)) for source, _, _ in taken}
            hits = [hit for hit in hits if hit[0] not in given]
        else:
            notes += [*map(Note, unreadable), *_passed_over(text, hits)]
        for source, series, lines in taken:
            hits += [(path, path.parent) for path in series]
            faults.update((path, fault) for path, fault in series.items() if fault is not None)
            sources.update((path, _shown(source)) for path in series)
            notes += [Note(line, f"{_shown(source)}: {line}") for line in lines]
        if not hits:
            notes.append(Note(f"{_shown(text)}: no scan found there"))
        for path, root in hits:
            found.setdefault(path, root)
    if not any(os.path.lexists(p) or p in faults for p in found):
        raise _nothing(texts, notes, converted is not None)
    if converted is None:
        faults = {path: _needs_preparing(path) for path in found if path.is_file() and is_dicom(path)}
    scans = tuple(
        replace(scan, fault=faults.get(scan.path), source=sources.get(scan.path, ""))
        for scan in _named(found)
    )
    _refuse_overwriting(scans, out)
    return Inputs(scans, tuple(notes))


def _needs_preparing(path: Path) -> HzError:
    """What to say of an archive or a DICOM file where only scans are taken."""
    name = printable(path.name)
    what = "an archive" if is_archive(name) else "a DICOM file"
    return UnsupportedScan(
        f"{name}: {what}, and no scan.", f"If it holds a raw head:  hz-run --prepare {name}"
    )


def _passed_over(text: str, hits: Sequence[tuple[Path, Path]]) -> Iterator[Note]:
    """That archives or DICOM lie beside the scans of a folder, where they are not looked into."""
    folder = Path(os.path.abspath(text))
    if not hits or not folder.is_dir():
        return
    archives, loose = find_archives(folder), count_by_name(folder)
    parts = [f"{len(archives)} archive{'s' * (len(archives) != 1)}"] * bool(archives)
    parts += [f"{loose} DICOM file{'s' * (loose != 1)}"] * bool(loose)
    if parts:
        line = f"{_shown(text)}: {' and '.join(parts)} beside the scans passed over"
        some = ", ".join(printable(path.relative_to(folder).as_posix()) for path in archives[:5])
        more = ", ..." if len(archives) > 5 else ""
        how = "; a raw head in there is taken when it is given by itself:  hz-run --prepare PATH"
        yield Note(line + how, f"{line}{f' ({some}{more})' if some else ''}{how}")


def _nothing(texts: Sequence[str], notes: Sequence[Note], dicom: bool) -> UsageError:
    asked = ", ".join(map(_shown, texts)) or "no input given"
    closed = "; ".join(note.screen for note in notes if not note.text.endswith("no scan found there"))
    what = f"no scan found: {asked}{f' ({closed})' if closed else ''}."
    if not dicom:
        for text in texts:
            folder = Path(os.path.abspath(text))
            if folder.is_dir() and (holds_dicom(folder) or find_archives(folder)):
                return UsageError(
                    f"{what} {_shown(text)} holds DICOM, or archives.",
                    f"Raw heads in there are taken by  hz-run --prepare {_shown(text)}",
                )
    more, hint = (", DICOM", "") if dicom else ("", "  (DICOM:  hz-run --prepare FOLDER)")
    return UsageError(
        what,
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
