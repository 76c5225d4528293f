"""DICOM among the inputs of a batch: its T1-weighted series become NIfTI files that live as long as the run.

Names and messages hold nothing of the input's own name, which may be a patient's.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from hz_runtime.dicom.convert import convert
from hz_runtime.dicom.deidentify import SALT, need
from hz_runtime.dicom.folder import find_archives, holds_dicom, is_dicom
from hz_runtime.dicom.intake import dicom_files, private_folder
from hz_runtime.dicom.selection import choose_each
from hz_runtime.dicom.whole_files import check_whole, find_whole
from hz_runtime.errors import HzError, UnsupportedScan, UsageError


@dataclass(frozen=True)
class DicomScans:
    """Converts DICOM inputs into `folder`.  salt : see `deidentify.pseudonym`."""

    folder: Path
    salt: str = SALT
    _numbers: Iterator[int] = field(default_factory=lambda: count(1), repr=False)

    def sources(self, text: str, scans: Sequence[Path]) -> list[str]:
        """What of the INPUT `text`, in which `scans` were found, is DICOM, each to be taken by itself: an
        archive, a DICOM file, or, of a folder that holds no scan, its DICOM and every archive in it."""
        path = Path(os.path.abspath(text))
        if path.is_dir():
            if any(scan.is_relative_to(path) for scan in scans):
                return []
            loose = [text] if holds_dicom(path) else []
            return loose + [os.path.join(text, found.relative_to(path)) for found in find_archives(path)]
        if path.is_file():
            return [text] if is_dicom(path) else []
        matches = [] if os.path.lexists(path) else sorted(glob.glob(text, recursive=True))
        return list(dict.fromkeys(source for match in matches for source in self.sources(match, scans)))

    def take_all(
        self, text: str, scans: Sequence[Path]
    ) -> list[tuple[str, dict[Path, HzError | None], list[str]]]:
        """Each of `sources` with what `take` gives for it."""
        return [(source, *self.take(source)) for source in self.sources(text, scans)]

    def take(self, text: str) -> tuple[dict[Path, HzError | None], list[str]]:
        """(the file of the T1-weighted head of every study in `text`, or what was wrong instead; notes).

        text : one of `sources`.  A study without one has a path, too, at which there is no file. Notes are
        those of `dicom_files`, and which files are damaged. Raises UsageError where the extra `dicom` is not
        installed.
        """
        need("pydicom", "dcm2niix")
        into = self.folder / f"{next(self._numbers):04}"
        made: dict[Path, HzError | None] = {}
        notes: list[str] = []
        try:
            with dicom_files(text, note=notes.append) as files:
                series, damage = find_whole(files)
                notes += [found.said for found in damage]
                chosen, without = choose_each(series)
                for one in chosen:
                    try:
                        check_whole(one, damage, alone=len(chosen) + without == 1)
                        made[convert(one, into, salt=self.salt).volume] = None
                    except HzError as error:
                        made[self._none(into, len(made))] = error
        except UsageError:
            raise
        except HzError as error:
            return {self._none(into, 0): error}, notes
        for _ in range(without):
            fault = UnsupportedScan(
                "a study without a T1-weighted head, by the rules.", "Look at it with  hz-dicom list IN"
            )
            made[self._none(into, len(made))] = fault
        return made, notes

    @staticmethod
    def _none(into: Path, number: int) -> Path:
        return into / f"dicom-{into.name}-{number + 1}"


@contextmanager
def dicom_scans() -> Iterator[DicomScans]:
    """Takes DICOM until the context ends; then its files are gone. Salt: $HZ_DICOM_SALT, as for hz-dicom."""
    with private_folder() as folder:
        yield DicomScans(folder, os.environ.get("HZ_DICOM_SALT") or SALT)
