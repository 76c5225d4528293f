"""Studies in, what goes back to the archive out: the whole way of a head in one call.

Of each study the T1-weighted head is taken as `hz-dicom` takes it, prepared and harmonized as by
`hz-run --prepare`, and written back as by `hz-dicom export`, with a result.json beside it. Heads of several
studies go through together, so that a batch takes no longer than one of hz-run. What calls this, and where
the studies come from, is not known here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.batch.executor import Event
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.dicom.convert import convert, make_folder, output_name
from hz_runtime.dicom.deidentify import SALT, need
from hz_runtime.dicom.export import write_export
from hz_runtime.dicom.intake import dicom_files, private_folder
from hz_runtime.dicom.page_objects import PageKind
from hz_runtime.dicom.result import read_result
from hz_runtime.dicom.selection import choose_each, judge
from hz_runtime.dicom.series import Series, find_series
from hz_runtime.dicom.whole_files import Damage, find_damage
from hz_runtime.errors import HzError, UnreadableScan, UnsupportedScan, UsageError
from hz_runtime.hospital.outcome import RESULT_NAME, Outcome
from hz_runtime.preparation.preparer import Preparation
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle

_MOST_NAMED = 8  # damaged files, in one line


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


@dataclass(frozen=True, eq=False)
class Head:
    """The head of a study.  volume : the converted series.  notes : what its input left unclear."""

    series: Series
    volume: Path
    name: str
    notes: tuple[str, ...]


def process_studies(
    studies: Sequence[Study],
    bundle: Bundle,
    options: ProcessOptions | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
) -> list[Outcome]:
    """Process `studies` together, and write what is made of each, with a result.json, to its folder.

    stop : set it from anywhere to end early; studies that were not reached are interrupted, without a
    result.json. A study that fails does not raise. Raises UsageError where a package is missing or a folder
    cannot be written.
    """
    need("pydicom", "dcm2niix", "highdicom", "PIL")
    options = options or ProcessOptions()
    for study in studies:
        make_folder(study.out)
        (study.out / RESULT_NAME).unlink(missing_ok=True)  # what is there is no longer claimed
    outcomes: list[Outcome] = []
    with ExitStack() as held:
        work = held.enter_context(private_folder())
        taken = [_take(study, work / f"{n:04}", options, held) for n, study in enumerate(studies)]
        heads = [one for one in taken if isinstance(one, Head)]
        made = _harmonized(heads, bundle, work / "out", options, on_event, stop)
        results = iter(zip(heads, made, strict=True))
        for study, one in zip(studies, taken, strict=True):
            outcome = one if isinstance(one, Outcome) else _written_back(*next(results), study, work, options)
            if outcome.status != "interrupted":
                outcome.write(study.out)
            outcomes.append(outcome)
    return outcomes


def _take(study: Study, folder: Path, options: ProcessOptions, held: ExitStack) -> Head | Outcome:
    """The head of a study, converted into `folder`; or why there is none. Its files are there until `held`
    ends."""
    notes: list[str] = []
    name = ""
    try:
        files = held.enter_context(dicom_files(study.source, note=notes.append))
        damage = find_damage(files)
        series = find_series(files)
        try:
            chosen, _ = choose_each(series)
        except UnsupportedScan as error:
            if damage:
                raise _damaged(damage) from error
            return Outcome("discarded", (error.message,), tuple(notes))
        if len(chosen) > 1:
            raise UsageError(
                f"the input holds T1-weighted heads of {len(chosen)} studies.", "Give one study at a time."
            )
        one = chosen[0]
        name = output_name(one, options.salt).partition("_")[0]
        if own := [found for found in damage if found.uid == one.uid]:
            raise _damaged(own)
        notes += [found.said for found in damage]
        return Head(one, convert(one, folder, salt=options.salt).volume, name, tuple(notes))
    except HzError as error:
        return Outcome.failed(error, tuple(notes), name)


def _damaged(damage: Sequence[Damage]) -> UnreadableScan:
    said = [found.said for found in damage[:_MOST_NAMED]]
    said += [f"and {len(damage) - _MOST_NAMED} more"] if len(damage) > _MOST_NAMED else []
    return UnreadableScan(f"{'; '.join(said)}.", "Send the series again.")


def _harmonized(
    heads: Sequence[Head],
    bundle: Bundle,
    out: Path,
    options: ProcessOptions,
    on_event: Callable[[Event], None] | None,
    stop: threading.Event | None,
) -> list[ScanResult | HzError]:
    """What hz-run makes of the heads, in their order; or what stopped all of them."""
    if not heads:
        return []
    try:
        if not any(entry.role == "harmonizer" for entry in bundle.models):
            raise UsageError(
                f"{bundle.path.name} holds no harmonizer, so that there is no series to send back.",
                "Give a bundle with one; ages alone are hz-run's:  hz-run --prepare SERIES --model BUNDLE",
            )
        report = run_batch([head.volume for head in heads], bundle, out, options.batch, on_event, stop)
    except HzError as error:
        return [error for _ in heads]
    return list(report.scans)


def _written_back(
    head: Head, made: ScanResult | HzError, study: Study, work: Path, options: ProcessOptions
) -> Outcome:
    """Write what goes back of a head that hz-run has done."""
    if isinstance(made, HzError):
        return Outcome.failed(made, head.notes, head.name)
    if made.reason == NOT_REACHED:
        return Outcome("interrupted", (NOT_REACHED,), head.notes, head.name)
    taken = judge(head.series).reason
    if made.status == "failed":
        # A gate that is not passed says that this is no head to use; anything else, that something is wrong.
        refused = any(gate.get("passed") is not True for gate in made.gates)
        status, code = ("discarded", 0) if refused else ("failed", 3)
        return Outcome(status, (made.reason,), head.notes, head.name, taken, code)  # type: ignore[arg-type]
    try:
        volume = work / "out" / made.outputs[0]
        result = read_result(volume)
        exported = write_export(
            volume, head.series, study.out, result, options.page,
            keep_ids=options.keep_ids, salt=options.salt, before=head.volume,
        )  # fmt: skip
    except HzError as error:
        return Outcome.failed(error, head.notes, head.name)
    flags = result.origin.flags
    return Outcome("flagged" if flags else "done", flags, head.notes, head.name, taken, 0, result, exported)
