"""A study that is to be processed, and how: what callers of `process` and its parts have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hz_runtime.batch.run_options import RunOptions
from hz_runtime.dicom.deidentify import SALT
from hz_runtime.dicom.page_objects import PageKind
from hz_runtime.preparation.preparer import Preparation


@dataclass(frozen=True)
class Study:
    """source : folder or archive with one examination.  out : folder for what is made of it."""

    source: Path
    out: Path


@dataclass(frozen=True)
class ProcessOptions:
    """How studies are processed.

    run : choices of hz-run; space, dtype, pictures and preparation are set here where they have to be.
    page : the page for the reader, or None.  keep_ids, salt : as of `dicom.derived.write_derived`.
    """

    run: RunOptions = RunOptions()
    page: PageKind | None = "sc"
    keep_ids: bool = False
    salt: str = SALT

    @property
    def batch(self) -> RunOptions:
        """`run` for raw heads, whose volumes go back onto their slices."""
        preparation = self.run.preparation or Preparation()
        return replace(self.run, space="native", dtype="int16", report=False, preparation=preparation)
